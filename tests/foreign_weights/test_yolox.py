"""Imported weights give YOLOX's own outputs, which tools/fixtures/yolox_outputs.py has recorded in `yolox.npz`."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from detect.errors import UserError
from detect.foreign_weights.state_dicts import match_state
from detect.foreign_weights.yolox import REMEDY, detector_from_yolox, rename, yolox_options
from detect.models import YOLOX
from detect.models.yolox import decode
from detect.structures import Images

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "tools" / "fixtures"))
import yolox_outputs as recipe  # noqa: E402

KEYS = {"nano": 642, "tiny": 462, "s": 462, "m": 606, "l": 750, "x": 894}


def shapes_of(name):
    with np.load(HERE / "yolox.npz") as record:
        lines = [line.split() for line in str(record[f"{name} shapes"]).splitlines()]
    return {key: tuple(map(int, sides)) for key, *sides in lines}


def recorded_state(name):
    shapes = shapes_of(name)
    weights = {key: torch.from_numpy(value) for key, value in recipe.state_dict(shapes).items()}
    return {key: weights.get(key, torch.tensor(0)) for key in shapes}


@pytest.fixture(scope="module")
def nano():
    return recorded_state("nano")


@pytest.mark.parametrize("name", ["nano", "tiny"])
@torch.no_grad()
def test_outputs_are_yoloxs(name):
    model = detector_from_yolox(recorded_state(name))
    assert not model.training and model.num_classes == recipe.CLASSES
    with np.load(HERE / "yolox.npz") as record:
        expected = torch.from_numpy(record[f"{name} outputs"])
    canvas = torch.from_numpy(recipe.pixels())
    canvas[1, :, :, 70:] = 255  # what lies beyond the image does not matter
    raw, cells = model._predict(Images(canvas, torch.tensor(recipe.IMAGES)))
    x1, y1, x2, y2 = decode(raw.boxes, cells).unbind(-1)
    boxes = torch.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], dim=-1)
    scores = torch.cat([raw.objectness[..., None], raw.classes], dim=-1).sigmoid()
    torch.testing.assert_close(boxes, expected[..., :4], rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(scores, expected[..., 4:], rtol=0, atol=1e-4)
    assert expected.std(dim=(0, 1)).min() > 0.02  # cells differ


@pytest.mark.parametrize("name", KEYS)
def test_every_size_is_recognised_by_its_weights(name):
    """Each of the file's keys has one of ours of the same shape, and the other way round."""
    shapes = shapes_of(name)
    assert len(shapes) == KEYS[name]
    state = {key: torch.zeros(()).expand(shape) for key, shape in shapes.items()}
    options, size = yolox_options(state), recipe.SIZES[name]
    found = {(part.depth, part.width, part.depthwise) for part in (options.backbone, options.neck)}
    assert found == {tuple(size)} and options.depthwise == size.depthwise
    with torch.device("meta"):
        model = YOLOX(recipe.CLASSES, options)
    state.pop("backbone.backbone.stem.conv.conv.weight")  # the only tensor of another shape
    given = ("backbone.mean", "backbone.std", "backbone.body.stem.0.convolution.weight")
    matched = match_state(state, model, rename, lambda key, value: value, REMEDY, given)
    assert len(matched) == KEYS[name] - 1


def test_a_missing_tensor_is_named(nano):
    state = {key: value for key, value in nano.items() if not key.startswith("head.stems.1.")}
    with pytest.raises(
        UserError, match=r"head\.levels\.1\.stem\.0\.weight: no value for this and 5 other keys; give a"
    ):
        detector_from_yolox(state)


def test_other_networks_are_refused(nano):
    with pytest.raises(
        UserError, match=r"^backbone\.backbone\.stem\.conv\.conv\.weight: no such tensor; give a file of"
    ):
        yolox_options({"conv1.weight": torch.zeros(1)})
    with pytest.raises(UserError, match=r"^extra\.weight: unknown key; give a file of YOLOX"):
        detector_from_yolox({**nano, "extra.weight": torch.zeros(1)})


@pytest.mark.parametrize(
    ("key", "shape", "message"),
    [
        ("backbone.backbone.stem.conv.conv.weight", (16, 3, 6, 6), r"has shape \[16, 3, 6, 6\], not that of Focus"),
        ("head.cls_preds.0.bias", (0,), "has no classes; give a file of YOLOX"),
    ],
)
def test_shapes_that_yolox_never_has_are_refused(nano, key, shape, message):
    with pytest.raises(UserError, match=f"^{key}: {message}"):
        detector_from_yolox({**nano, key: torch.zeros(shape)})


def test_values_that_are_not_finite_are_refused(nano):
    state = {**nano, "head.obj_preds.0.bias": torch.tensor([torch.nan])}
    with pytest.raises(UserError, match=r"^head\.obj_preds\.0\.bias: has values that are not finite"):
        detector_from_yolox(state)
