"""The list of detectors, and the requirements on each."""

import pytest
import torch
from torch import Tensor

from detect import models
from detect.backbones import AnyBackbone, LeNetOptions, Pixels, ResNetOptions
from detect.models import (
    MODELS,
    RCNN,
    YOLOX,
    CascadeRCNN,
    CascadeRCNNOptions,
    Detector,
    DetectorOptions,
    FasterRCNN,
    FasterRCNNOptions,
    FastRCNN,
    FastRCNNOptions,
    MaskRCNN,
    MaskRCNNOptions,
    RCNNOptions,
    YOLOXOptions,
    build_detector,
    model_names,
    options_class,
)
from detect.options import options
from detect.structures import Batch, Detections, Images, Proposals, Targets


@options
class OneBoxOptions(DetectorOptions):
    """Options of a one-stage detector outside of the package."""

    proposals = "none"
    name: str = "one_box"
    backbone: AnyBackbone = LeNetOptions()


class OneBox(Detector):
    """Detects each whole image as class 0; it implements only the required methods."""

    Options = OneBoxOptions

    def __init__(self, num_classes: int, options: OneBoxOptions | None = None) -> None:
        super().__init__(num_classes, options or OneBoxOptions(), Pixels())
        self.score = torch.nn.Parameter(torch.tensor(0.5))

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        return {"score": (self.features(batch.images)[0].mean() - self.score).abs()}

    @torch.no_grad()
    def detect(self, images: Images, proposals: Proposals | None = None) -> Detections:
        boxes = torch.cat([torch.zeros_like(images.sizes), images.sizes.flip(-1)], dim=-1).float()[:, None]
        scores = self.score.expand(len(boxes), 1)
        return Detections(boxes, scores, torch.zeros_like(scores, dtype=torch.int64), torch.ones_like(scores).bool())


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setattr(models, "MODELS", [*MODELS, OneBox])


def test_names_of_all_detectors():
    assert model_names() == ("rcnn", "fast_rcnn", "faster_rcnn", "mask_rcnn", "cascade_rcnn", "yolox")
    three = [RCNNOptions, FastRCNNOptions, FasterRCNNOptions]
    assert [options_class(name) for name in model_names()] == [
        *three,
        MaskRCNNOptions,
        CascadeRCNNOptions,
        YOLOXOptions,
    ]
    with pytest.raises(KeyError):
        options_class("yolo")


@pytest.mark.parametrize("model", MODELS)
def test_options_build_their_detector(model):
    options = model.Options(backbone=ResNetOptions(18))
    with torch.device("meta"):
        detector = build_detector(options, 7)
    assert type(detector) is model and detector.options is options and detector.num_classes == 7


@pytest.mark.parametrize(
    ("model", "proposals"),
    [(RCNN, "given"), (FastRCNN, "given"), (FasterRCNN, "own"), (MaskRCNN, "own"), (CascadeRCNN, "own")],
)
def test_where_proposals_come_from(model, proposals):
    assert model.Options.proposals == proposals
    with torch.device("meta"):
        detector = model(3, model.Options(backbone=ResNetOptions(18)))
    assert (detector.rpn is not None) == (proposals == "own")


@pytest.mark.parametrize("model", MODELS)
def test_the_predictor_keeps_float32(model):
    with torch.device("meta"):
        detector = model(3, model.Options(backbone=ResNetOptions(18)))
    if model is YOLOX:
        predictors = tuple(predictor for level in detector.head.heads for predictor in level.predictors)
    else:
        heads = detector.region_head.heads if model is CascadeRCNN else [detector.region_head]
        predictors = tuple(head.predictor for head in heads)
    assert detector.fp32_modules() == predictors
    assert detector.dtype == torch.float32 and detector.to(torch.bfloat16).dtype == torch.bfloat16


def test_unknown_options_belong_to_no_detector():
    with pytest.raises(TypeError, match=r"^OneBoxOptions: no detector in detect\.models\.MODELS has these options$"):
        build_detector(OneBoxOptions(), 3)


@pytest.mark.usefixtures("registered")
def test_a_detector_from_outside_needs_only_loss_and_detect():
    assert model_names()[-1] == "one_box" and options_class("one_box") is OneBoxOptions
    detector = build_detector(OneBoxOptions(), 3)
    assert type(detector) is OneBox and OneBoxOptions.recipes == ("joint",)
    images = Images(torch.zeros(2, 3, 32, 64, dtype=torch.uint8), torch.tensor([[32, 64], [20, 30]]))
    none = torch.zeros(2, 1, dtype=torch.bool)
    targets = Targets(torch.zeros(2, 1, 4), torch.zeros(2, 1, dtype=torch.int64), none, none)
    batch = Batch(images, targets, torch.arange(2), torch.ones(2, 2))
    losses, detections = detector.validate(batch)
    assert not losses["score"].requires_grad and torch.equal(losses["score"], detector.loss(batch)["score"].detach())
    assert detections.boxes.tolist() == [[[0, 0, 64, 32]], [[0, 0, 30, 20]]] and detections.proposals is None
    assert detector(images.pixels).boxes.tolist() == [[[0, 0, 64, 32]]] * 2
    assert detector.fp32_modules() == ()


@pytest.mark.parametrize("images", [0, 1, 3])
def test_a_plain_tensor_stands_for_images_that_fill_the_canvas(images):
    detections = OneBox(3)(torch.zeros(images, 3, 32, 64))
    assert detections.boxes.tolist() == [[[0, 0, 64, 32]]] * images


def test_a_detector_without_them_has_no_loss_and_no_detections():
    detector = Detector(3, OneBoxOptions(), Pixels())
    images = Images(torch.zeros(1, 3, 32, 32), torch.tensor([[32, 32]]))
    none = torch.zeros(1, 1, dtype=torch.bool)
    targets = Targets(torch.zeros(1, 1, 4), none.long(), none, none)
    with pytest.raises(NotImplementedError):
        detector.loss(Batch(images, targets, torch.arange(1), torch.ones(1, 2)))
    with pytest.raises(NotImplementedError):
        detector.detect(images)


@pytest.mark.parametrize("model", MODELS)
def test_memory_format_changes_no_detection(model):
    detector = model(3, model.Options(backbone=ResNetOptions(18, norm="batch"))).eval()
    images = Images(torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8), torch.tensor([[64, 64]]))
    corner = torch.rand(1, 8, 2) * 30
    valid = torch.ones(1, 8, dtype=torch.bool)
    given = Proposals(torch.cat([corner, corner + 20], dim=-1), valid.float(), valid)
    proposals = given if model.Options.proposals == "given" else None
    assert detector.memory_format == torch.channels_last
    one = detector.detect(images, proposals)
    other = detector.to_memory_format(torch.contiguous_format).detect(images, proposals)
    assert detector.memory_format == torch.contiguous_format
    torch.testing.assert_close(other.scores, one.scores, atol=1e-4, rtol=0)


def test_sections_and_names_of_options_are_checked():
    with pytest.raises(ValueError, match="name"):
        FasterRCNNOptions(name="fast_rcnn")
    with pytest.raises(ValueError, match="unexpected_keyword_argument"):
        FastRCNNOptions(rpn=None)
