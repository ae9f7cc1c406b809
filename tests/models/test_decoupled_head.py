import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from detect.backbones import CSPDarknetOptions, FeatureInfo, PAFPNOptions
from detect.models import YOLOX, YOLOXOptions
from detect.models.decoupled_head import DecoupledHead

LEVELS = (FeatureInfo(4, 8), FeatureInfo(6, 16))


def maps(images: int) -> list[torch.Tensor]:
    return [torch.randn(images, 4, 4, 6), torch.randn(images, 6, 2, 3)]


@pytest.mark.parametrize("images", [0, 1, 2])
@pytest.mark.parametrize("depthwise", [False, True])
def test_every_cell_has_its_outputs(images, depthwise):
    raw = DecoupledHead(LEVELS, num_classes=5, channels=8, depthwise=depthwise).eval()(maps(images))
    shapes = {name: tuple(value.shape) for name, value in raw._asdict().items()}
    assert shapes == {"classes": (images, 30, 5), "boxes": (images, 30, 4), "objectness": (images, 30)}


def test_cells_are_in_rows_and_the_finest_level_is_first():
    head = DecoupledHead(LEVELS, num_classes=2, channels=8, depthwise=False).eval()
    fine, coarse = maps(1)
    raw = head([fine, coarse])
    (alone,) = head.levels[1](coarse).boxes
    torch.testing.assert_close(raw.boxes[0, 24:], alone)
    # Row 1, column 2 of the finest level, by the layers of its head.
    layers = head.levels[0]
    features = layers.stem(fine)
    classes = layers.classes(layers.class_branch(features))
    boxes = layers.boxes(layers.box_branch(features))
    torch.testing.assert_close(raw.classes[0, 8], classes[0, :, 1, 2])
    torch.testing.assert_close(raw.boxes[0, 8], boxes[0, :, 1, 2])


def test_it_begins_with_a_probability_of_one_percent():
    head = DecoupledHead(LEVELS, num_classes=5, channels=8, depthwise=False)
    for level in head.levels:
        for predictor in (level.classes, level.objectness):
            assert predictor.bias.tolist() == pytest.approx([-math.log(99)] * len(predictor.bias))
            assert predictor.bias.sigmoid().tolist() == pytest.approx([0.01] * len(predictor.bias))


def test_outputs_of_half_precision_are_float32():
    head = DecoupledHead(LEVELS, num_classes=5, channels=8, depthwise=False).bfloat16().eval()
    raw = head([features.bfloat16() for features in maps(1)])
    assert all(value.dtype == torch.float32 for value in raw)


# ---- sizes of YOLOX --------------------------------------------------------------------------------------------------

SIZES = {
    "nano": (0.33, 0.25, 416, 912_159, 1.05),
    "tiny": (0.33, 0.375, 416, 5_055_855, 6.41),
    "s": (0.33, 0.5, 640, 8_968_255, 26.69),
    "m": (0.67, 0.75, 640, 25_326_495, 73.53),
    "l": (1.0, 1.0, 640, 54_208_895, 155.29),
    "x": (1.33, 1.25, 640, 99_071_455, 281.41),
}


@pytest.mark.parametrize("name", SIZES)
def test_yolox_has_its_parameters_and_operations(name):
    """Multiplications and additions of the convolutions are counted apart."""
    depth, width, size, parameters, giga = SIZES[name]
    multiples = {"depth": depth, "width": width, "depthwise": name == "nano"}
    options = YOLOXOptions(
        backbone=CSPDarknetOptions(**multiples), neck=PAFPNOptions(**multiples), depthwise=name == "nano"
    )
    with torch.device("meta"):
        model = YOLOX(80, options).eval()
        pixels = torch.empty(1, 3, size, size)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    with FlopCounterMode(display=False) as operations:
        raw = model.head(model.neck(model.backbone(pixels)))
    assert operations.get_total_flops() / 1e9 == pytest.approx(giga, abs=0.006)
    assert raw.boxes.shape == (1, sum((size // stride) ** 2 for stride in (8, 16, 32)), 4)
