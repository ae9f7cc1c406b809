import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn import functional as F
from torchvision.models import get_model

from detect.backbones import FeatureInfo, VGGOptions, vgg
from detect.backbones.norm import FrozenBatchNorm2d
from detect.errors import UserError

VARIANTS = [*((depth, norm) for depth in (11, 13, 16, 19, "C") for norm in ("none", "batch")), ("A-LRN", "none")]


@pytest.mark.parametrize(("depth", "norm"), VARIANTS)
def test_channels_and_strides_are_true(depth, norm):
    with torch.device("meta"):
        backbone, box_head = VGGOptions(depth, norm).build(multi_scale=False)
        for images in (0, 1, 2):
            (features,) = backbone(torch.empty(images, 3, 64, 96)).values()
            assert features.shape == (images, 512, 4, 6)
        for regions in (0, 1, 5):
            pooled = torch.empty(regions, box_head.channels_in, box_head.pooled, box_head.pooled)
            assert box_head(pooled).shape == (regions, box_head.channels)
    assert backbone.levels == {"conv5": FeatureInfo(channels=512, stride=16)}
    assert (box_head.channels_in, box_head.pooled, box_head.channels) == (512, 7, 4096)


def test_box_head_after_pool_after_backbone_is_the_network_up_to_its_classifier(monkeypatch):
    with torch.device("meta"):
        network = get_model("vgg11_bn")
    network = network.to_empty(device="cpu").eval()
    for tensor in network.features.state_dict().values():
        tensor.fill_(0.5)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    # Rows of a few distinct numbers fill the large matrices sooner than random numbers would.
    for layer in network.classifier[:6:3]:
        layer.bias.data.fill_(0.5)
        columns = torch.randn(layer.in_features) / layer.in_features**0.5
        layer.weight.data.copy_(columns.roll(1) * torch.linspace(-1, 1, layer.out_features)[:, None])
    monkeypatch.setattr(vgg, "get_model", lambda *args, **kwargs: network)
    pixels = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        expected = network.classifier[:6](network.avgpool(network.features(pixels)).flatten(1))
        backbone, box_head = VGGOptions(11, norm="frozen").build(multi_scale=False)
        (features,) = backbone(pixels).values()
        box_head.eval()
        torch.testing.assert_close(box_head(F.max_pool2d(features, 2)), expected)

        crop_network = VGGOptions(11, norm="frozen").build_crop_network(224).eval()
        torch.testing.assert_close(crop_network(pixels), expected, rtol=1e-6, atol=1e-6)
        small = torch.randn(2, 3, 70, 70)
        pool5 = network.avgpool(network.features(small)).flatten(1)
        expected = {"pool5": pool5, "fc6": network.classifier[:3](pool5), "fc7": network.classifier[:6](pool5)}
        torch.testing.assert_close(crop_network.forward_layers(small), expected, rtol=1e-6, atol=1e-6)
    assert all(layer.std() > 0 for layer in expected.values())


@pytest.mark.parametrize("depth", [11, 16])
@pytest.mark.parametrize("train_stages", [0, 1, 3, 5])
def test_the_last_stages_learn(depth, train_stages):
    with torch.device("meta"):
        backbone, box_head = VGGOptions(depth, "batch", train_stages).build(multi_scale=False)
    for place, stage in enumerate(backbone.body.values()):
        trainable = place >= 5 - train_stages
        assert all(parameter.requires_grad == trainable for parameter in stage.parameters())
        assert any(isinstance(layer, FrozenBatchNorm2d) for layer in stage) != trainable
    assert all(parameter.requires_grad for parameter in box_head.parameters())


def test_the_default_freezes_what_fast_rcnn_freezes():
    with torch.device("meta"):
        backbone, _ = VGGOptions().build(multi_scale=False)
    frozen = [name for name, parameter in backbone.named_parameters() if not parameter.requires_grad]
    assert {name.split(".")[1] for name in frozen} == {"conv1", "conv2"}
    assert len(frozen) == 2 * 4


@pytest.mark.parametrize(("norm", "kind"), [("batch", nn.BatchNorm2d), ("frozen", FrozenBatchNorm2d)])
def test_norms(norm, kind):
    with torch.device("meta"):
        backbone, _ = VGGOptions(11, norm, train_stages=5).build(multi_scale=False)
    norms = [layer for layer in backbone.modules() if isinstance(layer, nn.BatchNorm2d | FrozenBatchNorm2d)]
    assert len(norms) == 8
    assert all(isinstance(layer, kind) for layer in norms)


# ---- A-LRN and C -----------------------------------------------------------------------------------------------------


def convolutions(depth) -> list[nn.Conv2d]:
    with torch.device("meta"):
        return [layer for layer in VGGOptions(depth).network().features if isinstance(layer, nn.Conv2d)]


def test_c_is_d_with_1x1_in_the_third_layers():
    """D has 3×3 everywhere: C has 8 · (256² + 512² + 512²) weights less."""
    ours, of_d = convolutions("C"), convolutions(16)
    assert [layer.out_channels for layer in ours] == [layer.out_channels for layer in of_d]
    assert [layer.kernel_size[0] for layer in ours] == [3] * 4 + [3, 3, 1] * 3
    assert [layer.padding[0] for layer in ours] == [1] * 4 + [1, 1, 0] * 3
    sizes = [sum(one.numel() for layer in layers for one in layer.parameters()) for layers in (ours, of_d)]
    assert sizes == [9_996_096, 9_996_096 + 8 * (256**2 + 2 * 512**2)]


def test_a_lrn_is_a_with_a_norm_after_its_first_layer():
    assert [layer.weight.shape for layer in convolutions("A-LRN")] == [layer.weight.shape for layer in convolutions(11)]
    with torch.device("meta"):
        stages = VGGOptions("A-LRN").stages(VGGOptions("A-LRN").network())
    assert [type(layer).__name__ for layer in stages["conv1"]] == ["Conv2d", "ReLU", "LocalResponseNorm"]
    conv1 = stages["conv1"].to_empty(device="cpu")
    with torch.no_grad():
        conv1[0].weight.zero_()
        conv1[0].bias.copy_(torch.tensor([100.0, 0, 0, 0, 200, -7] + 58 * [0.0]))
        cell = conv1(torch.zeros(1, 3, 1, 1)).flatten()
    # n = 5, k = 2, alpha = 1e-4, beta = 0.75: the squares are 1e4 and 4e4, four channels apart.
    expected = torch.tensor([100 / 3**0.75, 0, 0, 0, 200 / 6**0.75, 0])
    torch.testing.assert_close(cell[:6], expected)


def test_a_lrn_has_no_other_norm():
    with pytest.raises(ValidationError, match="norm is batch, but A-LRN has local response normalisation; set norm to"):
        VGGOptions("A-LRN", norm="batch")


@pytest.mark.parametrize(
    ("options", "name"), [(("A-LRN",), "vgg_a_lrn"), (("C",), "vgg_c"), (("C", "batch"), "vgg_c_bn")]
)
@pytest.mark.parametrize("weights", ["IMAGENET1K_V1", "DEFAULT"])
def test_torchvision_has_no_weights_of_a_lrn_and_c(options, name, weights):
    assert VGGOptions(*options).architecture() == name
    message = rf"^weights: {weights}: torchvision has none for {name}; give a \.pth, .* file$"
    with torch.device("meta"), pytest.raises(UserError, match=message):
        VGGOptions(*options, weights=weights).build(multi_scale=False)


@pytest.mark.parametrize(
    ("depth", "message"),
    [("A-LRN", "does not fit vgg_a_lrn: .*check depth"), ("C", r"features\.\d+\.weight is .*, 3, 3\], not .*, 1, 1\]")],
)
def test_files_of_a_and_d_do_not_fit(depth, message, tmp_path):
    file = tmp_path / "vgg.pth"
    with torch.device("meta"):
        base = VGGOptions(11 if depth == "A-LRN" else 16).network(2)
    torch.save({key: torch.zeros(1).expand(value.shape) for key, value in base.state_dict().items()}, file)
    with torch.device("meta"), pytest.raises(UserError, match=message):
        VGGOptions(depth, weights=str(file)).network(2)
