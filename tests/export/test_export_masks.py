"""Exports of detectors with masks: probabilities in the graph, pasted outside of it."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from detect.backbones import FPNOptions, ResNetOptions
from detect.checkpoint import Checkpoint, load_checkpoint
from detect.config import Config
from detect.data.options import DataOptions
from detect.errors import UserError
from detect.export import export_checkpoint as exporting
from detect.export.equality import MAX_MASK_DIFFERENCE, check_equality
from detect.export.export_checkpoint import export_checkpoint
from detect.models import (
    BoxHeadOptions,
    CascadeRCNNOptions,
    MaskHeadOptions,
    MaskRCNNOptions,
    PoolingOptions,
    PostprocessOptions,
    ProposalCounts,
    RPNOptions,
    build_detector,
)
from detect.prediction.onnx_detector import OnnxDetector
from detect.prediction.predictor import Predictor
from detect.prediction.result import Result

CLASSES, IDS = ("cat", "dog", "cow"), (3, 5, 8)
MASK_RCNN = MaskRCNNOptions(
    backbone=ResNetOptions(depth=18, norm="batch"),
    neck=FPNOptions(channels=16),
    rpn=RPNOptions(anchor_sizes=(8, 16, 32, 48, 64), testing=ProposalCounts(50, 10)),
    pooling=PoolingOptions(sampling_ratio=0, aligned=True),
    box_head=BoxHeadOptions(layers=1, channels=16),
    masks=MaskHeadOptions(convolutions=1, channels=8, norm="batch"),
    postprocess=PostprocessOptions(score_threshold=0.3, max_detections=15),
)
NETWORKS = {
    "mask_rcnn": MASK_RCNN,
    # Without a pyramid, the mask head shares the network's last stage with the box head.
    "mask_rcnn without neck": replace(
        MASK_RCNN, neck=None, rpn=RPNOptions(anchor_sizes=(16, 32, 64), testing=ProposalCounts(50, 10))
    ),
    "cascade_rcnn": CascadeRCNNOptions(
        backbone=MASK_RCNN.backbone,
        neck=MASK_RCNN.neck,
        rpn=MASK_RCNN.rpn,
        box_head=MASK_RCNN.box_head,
        masks=MaskHeadOptions(convolutions=1, channels=8),
        postprocess=PostprocessOptions(score_threshold=0.2, max_detections=15),
    ),
}


@cache
def checkpoint(name: str = "mask_rcnn") -> Checkpoint:
    """An untrained detector with many detections and different masks."""
    torch.manual_seed(0)
    config = Config(NETWORKS[name], DataOptions(root=Path("nowhere"), short_side=(64, 96), long_side=160))
    model = build_detector(config.model, len(CLASSES)).eval()
    for layer in [module.scores for module in model.region_head.predictors if hasattr(module, "scores")]:
        nn.init.normal_(layer.weight, std=0.05 if config.model.neck is None else 1.0)
    nn.init.normal_(model.mask_head.predictor.weight, std=1.0 if config.model.neck is None else 10.0)
    return Checkpoint(model, config, CLASSES, IDS)


@cache
def traced(name: str):
    return exporting.trace(checkpoint(name))


@pytest.fixture
def traced_once(unchecked, monkeypatch):
    """Trace once: tracing is slow, and the program is the same for both formats."""
    program = traced("mask_rcnn")
    monkeypatch.setattr(exporting, "trace", lambda checkpoint: program)


def images(*sizes):
    rng = np.random.default_rng(0)
    coarse = [rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8) for height, width in sizes]
    return [
        image.repeat(8, 0).repeat(8, 1)[:height, :width] for image, (height, width) in zip(coarse, sizes, strict=True)
    ]


@cache
def _exported(path: Path):
    return export_checkpoint(checkpoint(), path, "onnx", images((80, 100), (150, 120), (80, 100)))


@pytest.fixture
def exported(traced_once, tmp_path_factory):
    """Export once for all tests, as it is slow."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    path = tmp_path_factory.getbasetemp() / "masks.onnx"
    return path, _exported(path)


def test_onnx_masks_equal_the_checkpoints(exported):
    path, comparison = exported
    assert comparison.detections > 10 and 0 < comparison.mask_difference < MAX_MASK_DIFFERENCE
    detector = OnnxDetector(path)
    assert detector.predicts_masks
    sizes = [(192, 192), (40, 300), (33, 17), (1, 1)]
    assert check_equality(Predictor(checkpoint()), detector, images(*sizes)).detections > 10
    for ours, theirs in zip(
        Predictor(checkpoint()).predict(images(*[(90, 70)] * 2)),
        detector.predict(images(*[(90, 70)] * 2), batch_size=2),
        strict=True,
    ):
        assert len(ours) == len(theirs) > 2 and 0 < ours.masks.mean() < 1
        assert (ours.masks != theirs.masks).mean() < 1e-3


def test_onnx_masks_are_an_output_of_probabilities(exported):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(exported[0])
    masks = next(output for output in model.graph.output if output.name == "masks")
    sizes = [size.dim_param or size.dim_value for size in masks.type.tensor_type.shape.dim]
    assert [output.name for output in model.graph.output] == ["boxes", "scores", "labels", "count", "masks"]
    assert sizes == ["batch", "detections", 28, 28]
    assert not model.functions and {node.domain for node in model.graph.node} == {""}
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}


def test_onnx_images_without_detections(exported):
    (result,) = OnnxDetector(exported[0]).predict(images((50, 60)), score=1.0)
    assert len(result) == 0 and result.masks.shape == (0, 50, 60)


def test_torch_export_masks_equal_the_checkpoints(traced_once, tmp_path):
    out = tmp_path / "a.pt2"
    comparison = export_checkpoint(checkpoint(), out, "torch-export", images((80, 100)))
    assert comparison.detections > 5 and 0 < comparison.mask_difference < MAX_MASK_DIFFERENCE
    *_, count, masks = torch.export.load(out).module()(torch.from_numpy(np.stack(images((70, 60), (70, 60)))))
    assert masks.shape[2:] == (28, 28) and masks.dtype == torch.float32
    padded = torch.arange(masks.shape[1]) >= count[:, None]
    assert padded.any() and not masks[padded].any()


def test_safetensors_have_the_mask_head(tmp_path):
    pytest.importorskip("safetensors")
    export_checkpoint(checkpoint(), tmp_path / "a.safetensors", "safetensors", [])
    loaded = load_checkpoint(tmp_path / "a.safetensors")
    one, other = (next(Predictor(given).predict(images((50, 60)))) for given in (checkpoint(), loaded))
    np.testing.assert_array_equal(one.mask_probabilities, other.mask_probabilities)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mask_rcnn without neck", "cascade_rcnn"])
def test_other_detectors_with_masks(name, unchecked, tmp_path):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    comparison = export_checkpoint(checkpoint(name), tmp_path / "a.onnx", "onnx", images((80, 100), (120, 90)))
    assert comparison.detections > 5 and 0 < comparison.mask_difference < MAX_MASK_DIFFERENCE


# ---- the comparison --------------------------------------------------------------------------------------------------


def result(*values: float) -> Result:
    """A result with a mask of one value for each of some equal boxes."""
    n = len(values)
    masks = np.broadcast_to(np.array(values, np.float32)[:, None, None], (n, 28, 28))
    boxes, scores = np.array([[1, 2, 9, 8]] * n, np.float32), np.full(n, 0.9, np.float32)
    return Result(boxes, scores, np.zeros(n, np.int64), CLASSES, IDS, (20, 20), mask_probabilities=masks)


def compared(ours: Result, theirs: Result, monkeypatch):
    monkeypatch.setattr(Predictor, "predict", lambda self, batch, **options: iter([ours] * len(batch)))
    return check_equality(Predictor(checkpoint()), lambda batch: [theirs for _ in batch], images((20, 20)))


def test_small_differences_of_masks_are_reported(monkeypatch):
    comparison = compared(result(0.5, 0.8), result(0.5004, 0.8), monkeypatch)
    assert comparison.mask_difference == pytest.approx(4e-4, rel=1e-3)
    # Equal boxes are told apart by their masks, in any order.
    assert compared(result(0.5, 0.8), result(0.8, 0.5), monkeypatch).mask_difference == 0


def test_other_masks_are_refused(monkeypatch):
    with pytest.raises(UserError, match="the exported model differs: a cat"):
        compared(result(0.5), result(0.502), monkeypatch)


@pytest.mark.parametrize("lost", [0, 1])
def test_lost_masks_are_refused(lost, monkeypatch):
    pair = [result(0.5), result(0.5)]
    pair[lost] = replace(pair[lost], mask_probabilities=None)
    with pytest.raises(UserError, match="the exported model differs: a cat"):
        compared(*pair, monkeypatch)


def test_detections_without_masks_are_compared_by_their_boxes(monkeypatch):
    boxes_only = replace(result(0.5), mask_probabilities=None)
    assert compared(boxes_only, boxes_only, monkeypatch).mask_difference == 0
