import json

import pytest
import torch

from detect.backbones import ResNetOptions
from detect.curation.shapes import make_shapes
from detect.data.datamodule import DetectionData
from detect.data.options import DataOptions
from detect.devices import choose_device
from detect.evaluation.coco import METRICS
from detect.models import (
    BoxHeadOptions,
    Detector,
    FasterRCNNOptions,
    PostprocessOptions,
    ProposalCounts,
    RPNOptions,
    build_detector,
)
from detect.prediction.evaluate import evaluate, write_results
from detect.structures import Detections, Proposals


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> DetectionData:
    folder = tmp_path_factory.mktemp("data") / "shapes"
    make_shapes(folder, images={"train": 5}, size=(64, 96), progress=False)
    return DetectionData(DataOptions(root=folder, short_side=(80,), long_side=120, eval_batch_size=2, workers=0))


@pytest.fixture(scope="module")
def model(data) -> Detector:
    options = FasterRCNNOptions(
        backbone=ResNetOptions(depth=18, norm="batch", train_stages=5),
        rpn=RPNOptions(anchor_sizes=(8, 16, 32, 48, 64), testing=ProposalCounts(100, 20)),
        box_head=BoxHeadOptions(layers=1, channels=32),
        postprocess=PostprocessOptions(score_threshold=0.0),
    )
    return build_detector(options, len(data.classes)).eval()


class Oracle:
    """Detects the ground truth of a split."""

    def __init__(self, data: DetectionData):
        self.batches = iter(data.eval_loader(data.train))

    def __call__(self, images, proposals=None) -> Detections:
        batch = next(self.batches)
        assert torch.equal(batch.images.pixels, images.pixels)
        targets = batch.targets
        scores = targets.valid.float()
        proposals = Proposals(targets.boxes, scores, targets.valid)
        return Detections(targets.boxes, scores, targets.labels, targets.valid, proposals)


def run(model, data, **options):
    return evaluate(model, data.eval_loader(data.train), data.train, torch.device("cpu"), **options)


def test_perfect_detections_have_perfect_metrics(model, data, monkeypatch):
    monkeypatch.setattr(model, "detect", Oracle(data))
    metrics, evaluator = run(model, data)
    assert metrics["AP"] == metrics["AP50"] == metrics["AR100"] == metrics["VOC"]["mAP"] == pytest.approx(1.0)
    assert list(metrics)[:12] == list(METRICS)
    assert metrics["AR@100"] == pytest.approx(1.0) and metrics["ABO"] == pytest.approx(1.0, abs=1e-4)
    assert [prediction.image_id for prediction in evaluator.predictions] == [1, 2, 3, 4, 5]


def test_written_results_equal_those_returned(model, data, tmp_path):
    metrics, evaluator = run(model, data)
    write_results(tmp_path / "eval", metrics, evaluator)
    assert json.loads((tmp_path / "eval" / "metrics.json").read_text()) == metrics
    results = json.loads((tmp_path / "eval" / "predictions.json").read_text())
    assert len(results) == sum(len(prediction.boxes) for prediction in evaluator.predictions) > 0
    sizes = {record.id: (record.width, record.height) for record in data.train.records}
    for result in results:
        x, y, width, height = result["bbox"]
        assert x >= 0 and y >= 0
        assert x + width <= sizes[result["image_id"]][0] + 0.01 and y + height <= sizes[result["image_id"]][1] + 0.01


def test_no_detections(model, data, tmp_path, monkeypatch):
    def nothing(images, proposals=None) -> Detections:
        boxes, none = torch.zeros(len(images.sizes), 1, 4), torch.zeros(len(images.sizes), 1)
        return Detections(boxes, none, none.long(), none > 0, Proposals(boxes, none, none > 0))

    monkeypatch.setattr(model, "detect", nothing)
    metrics, evaluator = run(model, data)
    write_results(tmp_path, metrics, evaluator)
    assert metrics["AP"] == 0.0 and json.loads((tmp_path / "predictions.json").read_text()) == []


def test_a_detector_trained_on_the_cpu_is_evaluated_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto") == torch.device("cuda:1")


def test_chosen_classes_have_the_metrics_that_they_have_among_all(model, data):
    whole, _ = run(model, data)
    chosen = data.classes[2], data.classes[0]
    metrics, evaluator = run(model, data, classes=chosen)
    assert metrics["per_class"] == {name: whole["per_class"][name] for name in (data.classes[0], data.classes[2])}
    aps = [whole["per_class"][name]["AP"] for name in chosen if whole["per_class"][name]["AP"] is not None]
    assert metrics["AP"] == pytest.approx(sum(aps) / len(aps))
    assert evaluator.dataset.classes == (data.classes[0], data.classes[2]) and len(evaluator.dataset) == 5
