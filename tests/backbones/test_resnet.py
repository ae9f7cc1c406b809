import copy

import jaxtyping
import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torchvision.models import get_model

from detect.backbones import FeatureInfo, ResNet
from detect.backbones.backbone import freeze_bottom
from detect.backbones.norm import FrozenBatchNorm2d
from detect.errors import UserError

DEPTHS = [18, 34, 50, 101, 152]


@pytest.mark.parametrize("depth", DEPTHS)
def test_pyramid_channels_and_strides_are_true(depth):
    with torch.device("meta"):
        backbone, trunk = ResNet(depth).build()
        for images in (1, 2):
            maps = backbone(torch.empty(images, 3, 64, 160))
            expected = [(images, 256, 16, 40), (images, 256, 8, 20), (images, 256, 4, 10), (images, 256, 2, 5)]
            assert [tuple(features.shape) for features in maps] == [*expected, (images, 256, 1, 3)]
    assert backbone.features == tuple(FeatureInfo(256, stride) for stride in (4, 8, 16, 32, 64))
    assert trunk is None


@pytest.mark.parametrize("depth", DEPTHS)
def test_a_pyramid_without_stage_5_ends_a_level_earlier(depth):
    with torch.device("meta"):
        backbone, trunk = ResNet(depth, fpn_top=4).build()
        maps = backbone(torch.empty(2, 3, 64, 160))
    assert [tuple(features.shape[1:]) for features in maps] == [(256, 16, 40), (256, 8, 20), (256, 4, 10), (256, 2, 5)]
    assert backbone.features == tuple(FeatureInfo(256, stride) for stride in (4, 8, 16, 32))
    assert trunk is None
    assert list(backbone.body) == ["stem", "layer1", "layer2", "layer3"]


@pytest.mark.parametrize("depth", DEPTHS)
def test_c4_channels_and_strides_are_true(depth):
    with torch.device("meta"):
        backbone, trunk = ResNet(depth, fpn=False).build()
        (features,) = backbone(torch.empty(2, 3, 64, 96))
        assert features.shape == (2, backbone.features[0].channels, 4, 6)
        for regions in (0, 1, 5):
            pooled = torch.empty(regions, trunk.channels_in, trunk.pooled, trunk.pooled)
            assert trunk(pooled).shape == (regions, trunk.channels)
    assert backbone.features == (FeatureInfo(256 if depth < 50 else 1024, stride=16),)
    assert (trunk.pooled, trunk.channels) == (14, 512 if depth < 50 else 2048)


def network_and_file(depth, folder):
    """A network of torchvision's with statistics that matter, and its file."""
    network = get_model(f"resnet{depth}").eval()
    generator = torch.Generator().manual_seed(0)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.uniform_(-0.1, 0.1, generator=generator)
            layer.running_var.uniform_(0.5, 1.5, generator=generator)
    torch.save(network.state_dict(), folder / "network.pth")
    return network, str(folder / "network.pth")


@pytest.mark.parametrize(("depth", "norm"), [(18, "frozen"), (18, "batch"), (50, "frozen")])
def test_trunk_after_backbone_is_the_network_up_to_its_classifier(depth, norm, tmp_path):
    network, file = network_and_file(depth, tmp_path)
    network.fc = nn.Identity()
    backbone, trunk = ResNet(depth, fpn=False, norm=norm, weights=file).build()
    pixels = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        (features,) = backbone.eval()(pixels)
        assert features.shape[-2:] == (trunk.pooled, trunk.pooled)
        torch.testing.assert_close(trunk.eval()(features), network(pixels), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("depth", "norm", "size"), [(18, "frozen", 224), (18, "batch", 65), (50, "frozen", 64)])
def test_the_whole_is_the_network_up_to_its_classifier(depth, norm, size, tmp_path):
    network, file = network_and_file(depth, tmp_path)
    network.fc = nn.Identity()
    trunk = ResNet(depth, norm=norm, weights=file).build_whole(size).eval()
    crops = torch.randn(2, 3, size, size)
    with torch.no_grad():
        expected = network(crops)
        torch.testing.assert_close(trunk.forward_layers(crops), {"pool5": expected}, rtol=1e-6, atol=1e-6)
        assert torch.equal(trunk(crops), trunk.forward_layers(crops)["pool5"])
    assert expected.std() > 0


@pytest.mark.parametrize("train_stages", [0, 2, 5])
def test_the_last_stages_of_the_whole_learn(train_stages):
    with torch.device("meta"):
        trunk = ResNet(18, norm="batch", train_stages=train_stages).build_whole(64)
    for place, stage in enumerate(trunk.body):
        learns = place >= 5 - train_stages
        assert all(parameter.requires_grad == learns for parameter in stage.parameters())
        assert any(isinstance(layer, nn.BatchNorm2d) for layer in stage.modules()) == learns


@pytest.mark.parametrize("top", [4, 5])
def test_the_pyramid_stands_on_the_networks_stages(top, tmp_path):
    network, file = network_and_file(18, tmp_path)
    backbone, _ = ResNet(18, weights=file, fpn_top=top).build()
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        stages, x = [], network.maxpool(network.relu(network.bn1(network.conv1(pixels))))
        for layer in (network.layer1, network.layer2, network.layer3, network.layer4)[: top - 1]:
            x = layer(x)
            stages.append(x)
        torch.testing.assert_close(backbone(pixels), backbone.fpn(stages), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("train_stages", [0, 2, 3, 5])
@pytest.mark.parametrize("norm", ["frozen", "batch", "group"])
def test_the_last_stages_learn(train_stages, norm):
    with torch.device("meta"):
        backbone, trunk = ResNet(18, fpn=False, norm=norm, train_stages=train_stages).build()
    for place, stage in enumerate([*backbone.body, trunk]):
        learns = place >= 5 - train_stages
        assert all(parameter.requires_grad == learns for parameter in stage.parameters())
        assert any(isinstance(layer, nn.BatchNorm2d) for layer in stage.modules()) == (learns and norm == "batch")


def test_a_pyramid_always_learns():
    with torch.device("meta"):
        backbone, _ = ResNet(18, train_stages=0).build()
    assert all(parameter.requires_grad for parameter in backbone.fpn.parameters())
    assert not any(parameter.requires_grad for parameter in backbone.body.parameters())


@pytest.mark.parametrize("train_stages", [-1, 6])
def test_only_five_stages_can_learn(train_stages):
    with pytest.raises(UserError, match=rf"train_stages: {train_stages}: .*give 0 … 5"):
        freeze_bottom([nn.Sequential()] * 5, train_stages)


def test_a_step_moves_only_what_learns():
    torch.manual_seed(0)
    backbone, _ = ResNet(18, norm="batch", train_stages=2).build()
    before = copy.deepcopy(backbone.state_dict())
    optimizer = torch.optim.SGD([p for p in backbone.parameters() if p.requires_grad], lr=0.1)
    backbone.train()
    maps = backbone(torch.randn(2, 3, 64, 64))
    sum((features * torch.randn_like(features)).sum() for features in maps).backward()
    optimizer.step()

    changed = {key for key, value in backbone.state_dict().items() if not torch.equal(value, before[key])}
    frozen = ("mean", "std", "body.stem.", "body.layer1.", "body.layer2.")
    assert changed == {key for key in before if not key.startswith(frozen)}


def norms(module):
    kinds = (FrozenBatchNorm2d, nn.BatchNorm2d, nn.GroupNorm)
    return {type(layer) for layer in module.modules() if isinstance(layer, kinds)}


@pytest.mark.parametrize(
    ("norm", "in_body", "in_pyramid"),
    [
        ("frozen", FrozenBatchNorm2d, None),
        ("batch", nn.BatchNorm2d, nn.BatchNorm2d),
        ("group", nn.GroupNorm, nn.GroupNorm),
    ],
)
def test_norms(norm, in_body, in_pyramid):
    with torch.device("meta"):
        backbone, _ = ResNet(18, norm=norm, train_stages=5).build()
    assert norms(backbone.body) == {in_body}
    assert norms(backbone.fpn) == ({in_pyramid} if in_pyramid else set())


def test_normalisation_is_imagenets_and_travels_in_the_state():
    backbone, _ = ResNet(18).build()
    torch.testing.assert_close(backbone.state_dict()["mean"] / 255, torch.tensor([0.485, 0.456, 0.406]))
    torch.testing.assert_close(backbone.state_dict()["std"] / 255, torch.tensor([0.229, 0.224, 0.225]))


def test_channels_last_stays_and_gives_the_same():
    backbone, _ = ResNet(18).build()
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = backbone(pixels)
        backbone = backbone.to(memory_format=torch.channels_last)
        maps = backbone(pixels.to(memory_format=torch.channels_last))
    assert all(features.is_contiguous(memory_format=torch.channels_last) for features in maps)
    torch.testing.assert_close(maps, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("norm", ["frozen", "batch", "group"])
def test_trains_under_autocast(norm):
    backbone, _ = ResNet(18, norm=norm).build()
    with torch.autocast("cpu", torch.bfloat16):
        maps = backbone(torch.randn(2, 3, 64, 64))
    assert {features.dtype for features in maps} <= {torch.bfloat16, torch.float32}
    sum(features.float().square().mean() for features in maps).backward()
    gradients = [p.grad for p in backbone.parameters() if p.requires_grad]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


def test_nothing_depends_on_values():
    with FakeTensorMode():
        backbone, _ = ResNet(18).build()
        sum(features.sum() for features in backbone(torch.randn(2, 3, 64, 64))).backward()


@pytest.mark.parametrize("fpn", [False, True])
def test_compiles_as_one_graph(fpn, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # no checks of shapes inside the graph
    backbone, _ = ResNet(18, fpn=fpn).build()
    compiled = torch.compile(backbone, fullgraph=True, backend="eager")
    pixels = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(compiled(pixels), backbone(pixels))


# ---- strides and dilation --------------------------------------------------------------------------------------------


def parameters(*modules):
    return {key: value.shape for module in modules for key, value in module.state_dict().items()}


def test_strides_and_dilation_change_no_shape_of_a_weight():
    with torch.device("meta"):
        usual, _ = ResNet(50).build()
        moved, _ = ResNet(50, stride_in_1x1=True).build()
        cut, res5 = ResNet(50, fpn=False).build()
        dilated, trunk = ResNet(50, fpn=False, dilated=True).build()
    assert parameters(usual) == parameters(moved)
    assert trunk is None
    stage5 = {f"body.layer4.{key}": value for key, value in parameters(res5.stage).items()}
    assert parameters(dilated) == parameters(cut) | stage5
    assert dilated.features == (FeatureInfo(2048, stride=16),)


@pytest.mark.parametrize("stride_in_1x1", [False, True])
def test_the_stride_is_in_one_convolution_of_a_bottleneck(stride_in_1x1):
    with torch.device("meta"):
        body = ResNet(50, stride_in_1x1=stride_in_1x1).build()[0].body
    for stage, stride in (("layer1", 1), ("layer2", 2), ("layer3", 2), ("layer4", 2)):
        first, *others = body[stage]
        strides = (first.conv1.stride, first.conv2.stride)
        assert strides == ((stride, stride), (1, 1))[:: 1 if stride_in_1x1 else -1]
        assert first.downsample[0].stride == (stride, stride)
        assert all(block.conv1.stride == block.conv2.stride == (1, 1) for block in others)


@torch.no_grad()
def test_every_second_cell_of_a_dilated_stage_is_that_of_the_stage():
    # With the stride before all 3×3 convolutions, a dilated one sees at even cells what the other sees.
    torch.manual_seed(0)
    backbone, trunk = ResNet(50, fpn=False, norm="batch", stride_in_1x1=True).build()
    dilated, _ = ResNet(50, fpn=False, norm="batch", stride_in_1x1=True, dilated=True).build()
    stage5 = {f"body.layer4.{key}": value for key, value in trunk.stage.state_dict().items()}
    dilated.load_state_dict(backbone.state_dict() | stage5)
    pixels = torch.randn(2, 3, 64, 96)
    for module in (backbone, trunk, dilated):
        module.eval()
    (fine,) = dilated(pixels)
    coarse = trunk.stage(backbone(pixels)[0])
    assert fine.shape == (2, 2048, 4, 6) and coarse.shape == (2, 2048, 2, 3)
    assert coarse.std() > 0
    torch.testing.assert_close(fine[..., ::2, ::2], coarse, rtol=1e-4, atol=1e-4 * float(coarse.std()))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (lambda: ResNet(18, stride_in_1x1=True).build(), "ResNet-18 has no bottlenecks"),
        (lambda: ResNet(50, dilated=True).build(), "dilated: a pyramid needs stage 5 at stride 32; set fpn to false"),
    ],
)
def test_strides_that_cannot_be_are_refused(network, message):
    with pytest.raises(UserError, match=message), torch.device("meta"):
        network()
