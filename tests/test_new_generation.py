"""A new generation of detectors, defined outside of the package, goes through the whole product."""

import json
from dataclasses import field
from pathlib import Path
from typing import ClassVar, Literal

import pytest
import torch
from torch import nn
from torchvision.ops import sigmoid_focal_loss

import detect
from detect.backbones import AnyBackbone, AnyNeck, FPNOptions, ResNetOptions
from detect.cli import main
from detect.config import config_from_dict, config_to_dict
from detect.curation.shapes import make_shapes
from detect.models import MODELS, Detector, DetectorOptions, PostprocessOptions
from detect.models.anchors import AnchorGenerator
from detect.models.box_coder import BoxCoder
from detect.models.detector import known_targets
from detect.models.losses import box_regression_loss
from detect.models.matcher import Matcher, match
from detect.models.postprocess import postprocess
from detect.ops.boxes import gather_boxes
from detect.options import options


@options
class OneStageOptions(DetectorOptions):
    """Options of a small one-stage detector."""

    proposals: ClassVar = "none"

    name: Literal["one_stage"] = "one_stage"
    backbone: AnyBackbone = field(default_factory=lambda: ResNetOptions(18, norm="batch", train_stages=5))
    neck: AnyNeck = field(default_factory=lambda: FPNOptions(channels=32, first_level=3))
    postprocess: PostprocessOptions = field(default_factory=PostprocessOptions)


class OneStage(Detector):
    """Two convolutions on P3 … P5 classify and regress one anchor a cell."""

    Options = OneStageOptions

    def __init__(self, num_classes, options=None):
        options = options or OneStageOptions()
        backbone, _ = options.backbone.build(multi_scale=True)
        neck = options.neck.build(backbone.levels, options.backbone.norm)
        super().__init__(num_classes, options, backbone, neck)
        self.classes, self.deltas = (nn.Conv2d(32, width, 3, padding=1) for width in (num_classes, 4))
        nn.init.constant_(self.classes.bias, -2.0)
        self.anchors = AnchorGenerator((8, 16, 32), ((16,), (32,), (64,)), ratios=(1.0,), offset=0.5)
        self.matcher, self.box_coder = Matcher(0.5, 0.4, best_is_positive=True), BoxCoder()

    def outputs(self, images):
        maps = self.features(images)[:3]
        heads = (
            torch.cat([head(level).flatten(2).mT for level in maps], dim=1) for head in (self.classes, self.deltas)
        )
        logits, deltas = (head.float() for head in heads)  # bf16 in prediction, if asked
        return logits, deltas, self.anchors(maps).expand(images.pixels.shape[0], -1, -1)

    def loss(self, batch):
        targets = known_targets(batch.targets, self.num_classes)
        logits, deltas, anchors = self.outputs(batch.images)
        matched, labels = match(anchors, targets, self.matcher)
        positive, valid = labels == 1, labels >= 0
        classes = nn.functional.one_hot(targets.labels.gather(1, matched), self.num_classes) * positive[..., None]
        focal = sigmoid_focal_loss(logits, classes.float()) * valid[..., None]
        boxes = self.box_coder.encode(gather_boxes(targets.boxes, matched), anchors)
        regression = box_regression_loss(deltas, boxes, positive, positive, beta=1 / 9)
        return {"classification": focal.sum() / positive.sum().clamp(min=1), "boxes": regression}

    @torch.no_grad()
    def detect(self, images, proposals=None):
        logits, deltas, anchors = self.outputs(images)
        deltas = deltas[:, :, None].expand(-1, -1, self.num_classes, -1)
        valid = torch.ones_like(anchors[..., 0], dtype=torch.bool)
        options = self.postprocessing
        return postprocess(logits.sigmoid(), deltas, anchors, valid, images.sizes, self.box_coder, options)


@pytest.fixture(scope="module", autouse=True)
def registered():
    MODELS.append(OneStage)
    yield
    MODELS.remove(OneStage)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a training by the command, with its evaluation."""
    folder = tmp_path_factory.mktemp("one_stage")
    data = make_shapes(folder / "shapes", images={"train": 16, "val": 4}, size=(64, 96), progress=False)
    config = folder / "config.yaml"
    config.write_text(
        f"model: {{name: one_stage, postprocess: {{score_threshold: 0.01}}}}\n"
        f"data: {{root: {data}, test: train, short_side: [64], long_side: 96, batch_size: 4, workers: 0,"
        " augment: []}\n"
        "training: {epochs: 25, optimizer: adamw, learning_rate: 0.001, warmup_steps: 5, clip_norm: 10, "
        "schedule: cosine, validate_every: 25, accelerator: cpu}\n"
    )
    assert main(["train", "-c", str(config), "--out", str(folder / "run")]) == 0
    return folder


def test_it_trains_and_is_evaluated(run):
    metrics = json.loads((run / "run" / "eval" / "metrics.json").read_text())
    assert metrics["AP50"] > 0.3
    assert not any(name.startswith(("AR@", "recall@", "ABO", "MABO")) for name in metrics)  # there are no proposals
    assert metrics["evaluation"]["split"] == "train"


def test_its_report_has_no_proposals(run):
    page = (run / "run" / "eval" / "report.html").read_text()
    assert "one_stage" in page and '"proposals": null' in page.replace('"proposals":null', '"proposals": null')


def test_it_predicts(run):
    model = detect.load(run / "run" / "checkpoints" / "best.ckpt")
    image = next((run / "shapes").rglob("*.jpg"), None) or next((run / "shapes").rglob("*.png"))
    [result] = model.predict(str(image), score=0.05)
    assert len(result.boxes) and (result.scores >= 0.05).all() and set(result.names) <= set(model.classes)
    [flipped] = model.predict(str(image), score=0.05, flip=True, precision="bf16")
    assert len(flipped.boxes)


def test_it_is_compared_and_timed_in_a_process_of_its_own(run, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1])  # where that process finds this module
    checkpoint, out = str(run / "run" / "checkpoints" / "best.ckpt"), run / "comparison"
    assert main(["compare", checkpoint, "--out", str(out), "--images", "1", "--data.workers", "0"]) == 0
    [row] = json.loads((out / "compare.json").read_text())["rows"]
    assert row["detector"] == "one_stage" and row["AP50"] > 0.3 and row["recall@0.5@2000"] is None
    assert row["test_seconds"]["features"] > 0 == row["test_seconds"]["proposals"] == row["test_seconds"]["heads"]


def test_it_is_exported(run, unchecked, capsys):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    checkpoint, out = str(run / "run" / "checkpoints" / "best.ckpt"), run / "one_stage.onnx"
    assert main(["export", "--ckpt", checkpoint, "--out", str(out)]) == 0
    assert "same detections as the checkpoint" in capsys.readouterr().out
    image = next((run / "shapes").rglob("*.jpg"), None) or next((run / "shapes").rglob("*.png"))
    [result] = detect.load(out).predict(str(image), score=0.05)
    assert len(result.boxes)


def test_it_needs_no_store_and_takes_none(run, capsys):
    checkpoint = str(run / "run" / "checkpoints" / "best.ckpt")
    assert main(["eval", "--ckpt", checkpoint, "--data.proposals", "store.db", "--out", str(run / "other")]) == 2
    assert "one_stage does not use given proposals; leave the store out" in capsys.readouterr().err


def test_its_config_is_read_and_checked_like_any_other():
    config = config_from_dict({"model": {"name": "one_stage", "neck": {"channels": 64}}}, "a config")
    assert config.model.neck.channels == 64
    assert config_from_dict(config_to_dict(config), "itself") == config
    with pytest.raises(detect.errors.UserError, match=r"^a config: model\.neck\.channelz: there is no such option;"):
        config_from_dict({"model": {"name": "one_stage", "neck": {"channelz": 64}}}, "a config")
