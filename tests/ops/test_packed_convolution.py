"""Convolutions with packed weights."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from detect.backbones import CSPDarknetOptions, PAFPNOptions
from detect.models import YOLOX, YOLOXOptions
from detect.ops.packed_convolution import PackedConvolution, is_packable
from detect.prediction.prepare import prepare
from detect.structures import Images


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [1, 3, 6])
@pytest.mark.parametrize(("stride", "groups", "bias"), [(1, 1, True), (2, 1, False), (1, 8, True), (2, 8, True)])
def test_it_equals_the_layers(memory_format, size, stride, groups, bias):
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 16, size, stride, size // 2, groups=groups, bias=bias).requires_grad_(False)
    assert is_packable(layer)
    plain, fused = PackedConvolution(layer), PackedConvolution(layer, "swish")
    for height, width, batch in ((9, 13, 1), (32, 20, 3)):  # the weights are packed for the first size only
        x = torch.randn(batch, 8, height, width).to(memory_format=memory_format)
        assert torch.allclose(plain(x), layer(x), atol=1e-5)
        assert torch.allclose(fused(x), F.silu(layer(x)), atol=1e-5)


@pytest.mark.parametrize(
    "layer", [nn.Conv2d(4, 4, 3, padding="same"), nn.Conv2d(4, 4, 3).double(), nn.Conv2d(4, 4, 3).bfloat16(), nn.ReLU()]
)
def test_other_layers_are_left_alone(layer):
    assert not is_packable(layer)


def test_a_prepared_yolox_gives_the_same_outputs():
    torch.manual_seed(0)
    parts = {"width": 0.25, "depthwise": True}
    model = YOLOX(3, YOLOXOptions(backbone=CSPDarknetOptions(**parts), neck=PAFPNOptions(**parts), depthwise=True))
    images = Images(torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8), torch.tensor([[64, 96], [50, 60]]))
    for _ in range(3):
        model.train()._predict(images)  # statistics of the batch norms
    prepared = prepare(model.eval())
    assert any(isinstance(layer, PackedConvolution) for layer in prepared.modules())
    assert not any(isinstance(layer, nn.SiLU | nn.BatchNorm2d) for layer in prepared.modules())
    for given, computed in zip(model._predict(images)[0], prepared._predict(images)[0], strict=True):
        assert torch.allclose(given, computed, atol=1e-4)
    again = copy.deepcopy(prepared)
    assert torch.allclose(again.detect(images).scores, prepared.detect(images).scores, atol=1e-5)
