"""Time and memory of a detector: how the measurements are combined, not how large they are."""

from pathlib import Path

import pytest
import torch

from detect.backbones import ResNetOptions
from detect.checkpoint import model_card
from detect.config import Config
from detect.curation.propose import propose
from detect.curation.shapes import make_shapes
from detect.data.datamodule import DetectionData
from detect.data.options import DataOptions
from detect.models import (
    BoxHeadOptions,
    FasterRCNNOptions,
    FastRCNNOptions,
    MaskHeadOptions,
    MaskRCNNOptions,
    PostprocessOptions,
    ProposalCounts,
    RPNOptions,
    build_detector,
    region_head,
)
from detect.models.rpn import RPN
from detect.prediction import timing
from detect.prediction.timing import STAGES, measure_cost, time_stages

NETWORK = {
    "backbone": ResNetOptions(depth=18, norm="batch", train_stages=5),
    "box_head": BoxHeadOptions(layers=1, channels=32),
    "postprocess": PostprocessOptions(score_threshold=0.0),
}
MODELS = {
    "faster_rcnn": FasterRCNNOptions(
        **NETWORK, rpn=RPNOptions(anchor_sizes=(8, 16, 32, 48, 64), testing=ProposalCounts(100, 20))
    ),
    "fast_rcnn": FastRCNNOptions(**NETWORK),
}


@pytest.fixture(scope="module")
def configs(tmp_path_factory) -> dict[str, Config]:
    folder = tmp_path_factory.mktemp("data")
    root = make_shapes(folder / "shapes", images={"train": 5}, size=(64, 96), progress=False)
    propose([str(root)], folder / "store.db", processes=1)
    data = {"root": root, "short_side": (64,), "long_side": 96, "canvases": 1, "workers": 0, "max_proposals": 20}
    stores = {"faster_rcnn": None, "fast_rcnn": folder / "store.db"}
    return {name: Config(model=MODELS[name], data=DataOptions(**data, proposals=stores[name])) for name in MODELS}


def checkpoint(config: Config, data: DetectionData, path: Path) -> Path:
    weights = {
        f"model.{name}": value for name, value in build_detector(config.model, len(data.classes)).state_dict().items()
    }
    torch.save({"detect": model_card(config, data.train.classes, data.train.category_ids), "state_dict": weights}, path)
    return path


class Clock:
    """A clock that advances only when a function that it slows down returns."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds

    def slow(self, function, seconds: float):
        def slow_function(*args, **kwargs):
            result = function(*args, **kwargs)
            self.seconds += seconds
            return result

        return slow_function


@pytest.mark.parametrize("name", MODELS)
def test_timed_stages_give_the_detections_of_detect(configs, name, monkeypatch):
    data = DetectionData(configs[name].data)
    model = build_detector(configs[name].model, len(data.classes)).eval()
    batch = next(iter(data.eval_loader(data.train)))
    clock = Clock()
    slowed = [
        (model.backbone, "forward", 1.0),
        (model.neck, "forward", 2.0),
        (RPN, "forward", 4.0),
        (RPN, "propose", 8.0),
        (model.region_head.pooling, "forward", 16.0),
        (model.region_head.box_head, "forward", 32.0),
        (model.region_head.predictor, "forward", 64.0),
        (region_head, "postprocess", 128.0),
        (type(model), "detect", 256.0),
    ]
    methods = {owner: set(vars(owner)) for owner in (model, model.rpn, model.region_head) if owner is not None}
    with monkeypatch.context() as patch:
        for owner, function, duration in slowed:
            patch.setattr(owner, function, clock.slow(getattr(owner, function), duration))
        detections, seconds = time_stages(model, batch.images, batch.proposals, clock)
    proposals = {"faster_rcnn": 4.0 + 8.0, "fast_rcnn": 0.0}[name]
    assert seconds == {"features": 3.0, "proposals": proposals, "heads": 112.0, "postprocessing": 384.0}
    assert all(set(vars(owner)) == before for owner, before in methods.items())  # no method stays wrapped
    expected = model.detect(batch.images, batch.proposals)
    assert expected.valid.any()
    for field in ("boxes", "scores", "labels", "valid"):
        assert torch.equal(getattr(detections, field), getattr(expected, field))


def test_the_mask_head_is_a_stage_of_its_own(configs):
    options = MaskRCNNOptions(
        **NETWORK, rpn=MODELS["faster_rcnn"].rpn, masks=MaskHeadOptions(convolutions=1, channels=8)
    )
    data, clock = DetectionData(configs["faster_rcnn"].data), Clock()
    model = build_detector(options, len(data.classes)).eval()
    images = next(iter(data.eval_loader(data.train))).images
    model.mask_head.forward = clock.slow(model.mask_head.forward, 3.0)
    detections, seconds = time_stages(model, images, now=clock)
    assert seconds == {**dict.fromkeys(STAGES, 0.0), "masks": 3.0} and detections.masks is not None


@pytest.mark.slow
def test_a_separate_process_measures_the_cost(configs, tmp_path):
    config = configs["fast_rcnn"]
    data = DetectionData(config.data)
    path = checkpoint(config, data, tmp_path / "a.ckpt")
    cost = measure_cost(path, ["--model.postprocess.score_threshold=0.5"], data, data.train, 2, torch.device("cpu"))
    assert tuple(cost.stages) == STAGES and min(cost.stages.values()) > 0
    assert sum(cost.stages.values()) == pytest.approx(cost.seconds)
    weights = sum(value.nbytes for value in build_detector(config.model, len(data.classes)).state_dict().values())
    assert cost.memory is None or weights < cost.memory < 2**30


def test_images_are_evenly_spaced_and_the_median_is_divided_like_the_sum(configs, tmp_path, monkeypatch):
    config = configs["faster_rcnn"]
    data = DetectionData(config.data)
    path = checkpoint(config, data, tmp_path / "a.ckpt")
    seen = []

    def stages(model, images, given, now):
        seen.append(images)
        long = 10.0 if len(seen) == 2 else 1.0  # the first one is the warm-up
        return None, {"proposals": 0.0, "features": long, "heads": 2.0, "postprocessing": 1.0}

    class Inline:
        def __init__(self, *_, **__):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def submit(self, function, *arguments):
            self.result = lambda: function(*arguments)
            return self

    monkeypatch.setattr(timing, "ProcessPoolExecutor", Inline)
    monkeypatch.setattr(timing, "time_stages", stages)
    cost = measure_cost(path, [], data, data.train, 3, torch.device("cpu"))
    expected = [batch.images.pixels for batch in data.eval_loader(data.train)]
    assert len(seen) == 1 + 3
    for images, place in zip(seen[1:], (0, 2, 4), strict=True):
        assert torch.equal(images.pixels, expected[place])
    # 13, 4 and 4 seconds: of their sum of 21, 12 are features, 6 heads and 3 postprocessing.
    assert cost.seconds == 4.0
    assert cost.stages == pytest.approx(
        {"proposals": 0.0, "features": 4 * 12 / 21, "heads": 4 * 6 / 21, "postprocessing": 4 * 3 / 21}
    )
