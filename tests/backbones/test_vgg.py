import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import get_model

from detect.backbones import FeatureInfo, VGGOptions, vgg
from detect.backbones.norm import FrozenBatchNorm2d


@pytest.mark.parametrize("depth", [11, 13, 16, 19])
@pytest.mark.parametrize("norm", ["none", "batch"])
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
