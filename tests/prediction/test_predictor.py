from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import cv2
import numpy as np
import pytest
import torch
from torch import nn
from torchvision.ops import box_iou

import detect
from detect.backbones import FPNOptions, ResNetOptions
from detect.checkpoint import Checkpoint, model_card
from detect.config import Config
from detect.data.decode import decode
from detect.errors import UserError
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
)
from detect.prediction.predictor import Predictor
from detect.prediction.sources import Frame
from detect.proposals import selective_search
from detect.structures import Images

CLASSES = ("cell", "dust")


def checkpoint(model=None, short_side: int = 64) -> Checkpoint:
    """Checkpoint of a small random detector with many detections."""
    torch.manual_seed(0)
    options = model or FasterRCNNOptions(
        backbone=ResNetOptions(depth=18, norm="batch"),
        neck=FPNOptions(channels=32),
        rpn=RPNOptions(anchor_sizes=(8, 16, 32, 48, 64), testing=ProposalCounts(100, 30)),
        box_head=BoxHeadOptions(layers=1, channels=32),
        postprocess=PostprocessOptions(score_threshold=0.4, max_detections=60),
    )
    network = build_detector(options, len(CLASSES)).eval()
    scores = network.region_head.predictor.scores
    nn.init.normal_(scores.weight)
    with torch.no_grad():  # logits of mean 0 and deviation 1 over regions of the picture, for a range of scores
        images = Images(torch.from_numpy(picture()).permute(2, 0, 1)[None], torch.tensor([[64, 96]]))
        boxes = torch.rand(1, 50, 4).sort(dim=-1).values * torch.tensor([96.0, 64, 96, 64])
        logits, _ = network.region_head(network.features(images), boxes)
        deviation, mean = torch.std_mean(logits[0], dim=0)
        scores.weight.div_(deviation[:, None])
        scores.bias.copy_(-mean / deviation)
    config = Config(options)
    data = config.data.__class__(short_side=(short_side // 2, short_side), long_side=2 * short_side, max_proposals=50)
    return Checkpoint(network, Config(options, data), CLASSES, (7, 9))


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(checkpoint())


def picture(height: int = 64, width: int = 96, seed: int = 0) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def same(one, other, atol: float = 1e-3) -> bool:
    return (
        len(one) == len(other) > 0
        and np.allclose(one.scores, other.scores, atol=1e-5)
        and np.array_equal(one.labels, other.labels)
        and np.allclose(one.boxes, other.boxes, atol=atol)
    )


def test_an_image_at_the_input_size_is_not_resized(predictor):
    image = picture()
    [result] = predictor.predict(image)
    images = Images(torch.from_numpy(image).permute(2, 0, 1)[None], torch.tensor([[64, 96]]))
    detections = predictor.checkpoint.model.detect(images)
    valid = detections.valid[0]
    assert len(result) == valid.sum() > 3
    np.testing.assert_allclose(result.scores, detections.scores[0, valid], atol=1e-5)
    np.testing.assert_allclose(result.boxes, detections.boxes[0, valid].clamp(min=0), atol=1e-3)
    assert result.size == (64, 96) and result.classes == CLASSES and result.category_ids == (7, 9)
    assert result.path is None and np.array_equal(result.image, image)


def test_boxes_are_in_pixels_of_the_file(predictor, tmp_path):
    image = picture()
    cv2.imwrite(str(tmp_path / "large.png"), cv2.resize(image, (192, 128), interpolation=cv2.INTER_NEAREST)[..., ::-1])
    [large] = predictor.predict(tmp_path / "large.png")
    [small] = predictor.predict(image)
    assert large.size == (128, 192) and large.path == str(tmp_path / "large.png") and large.pixels is None
    np.testing.assert_allclose(large.boxes, small.boxes * 2, atol=1e-2)


def test_batches_give_the_results_of_single_images(predictor):
    images = [picture(64, 96, seed) for seed in range(5)]
    alone, together = [list(predictor.predict(images, batch_size=size)) for size in (1, 3)]
    assert all(same(one, other) for one, other in zip(alone, together, strict=True))


def test_images_of_other_shapes_have_separate_canvases(predictor, monkeypatch):
    canvases = []
    detect_in = type(predictor.checkpoint.model).detect
    monkeypatch.setattr(
        type(predictor.checkpoint.model),
        "detect",
        lambda self, images, given=None: canvases.append(tuple(images.pixels.shape)) or detect_in(self, images, given),
    )
    images = [picture(64, 96), picture(60, 90), picture(96, 64), picture(64, 64), picture(64, 66)]
    results = list(predictor.predict(images, batch_size=4))
    assert [result.size for result in results] == [image.shape[:2] for image in images]
    assert canvases == [(2, 3, 64, 96), (1, 3, 96, 64), (1, 3, 64, 64), (1, 3, 64, 96)]


def test_score_thresholds(predictor):
    image = picture()
    [usual], [more], [less] = (predictor.predict(image, score=score) for score in (None, 0.05, 0.5))
    assert usual.scores.min() > 0.4 and more.scores.min() > 0.05 and len(more) > len(usual)
    assert np.array_equal(less.scores, usual.scores[usual.scores > 0.5])
    [again] = predictor.predict(image)
    assert len(again) == len(usual)  # the threshold was only for that call


def test_chosen_classes(predictor):
    image = picture()
    [every] = predictor.predict(image)
    [dust] = predictor.predict(image, classes="dust")
    assert 0 < len(dust) < len(every) and set(dust.names) == {"dust"}
    with pytest.raises(UserError, match=r"class 'dusk': no such class; did you mean one of dust"):
        predictor.predict(image, classes=["dusk"])


def test_flip_augmentation_gives_flipped_results_for_a_flipped_image(predictor):
    image = picture()
    [one] = predictor.predict(image, flip=True)
    [other] = predictor.predict(np.ascontiguousarray(image[:, ::-1]), flip=True)
    mirrored = other.boxes[:, [2, 1, 0, 3]] * [-1, 1, -1, 1] + [96, 0, 96, 0]
    np.testing.assert_allclose(one.scores, other.scores, atol=1e-5)
    np.testing.assert_allclose(one.boxes, mirrored, atol=1e-3)


def test_scale_augmentation_equals_a_larger_input(predictor):
    image = picture()
    [both], [twice] = (predictor.predict(image, scales=scales) for scales in ((1.0, 2.0), (2.0,)))
    [larger] = Predictor(checkpoint(short_side=128)).predict(image)
    assert same(twice, larger) and set(np.round(both.scores, 4)) & set(np.round(twice.scores, 4))


@pytest.mark.parametrize("options", [{}, {"flip": True, "scales": (1.0, 2.0)}])
def test_eight_threads_give_the_same_results(predictor, monkeypatch, options):
    images = [picture(seed=seed) for seed in range(8)]
    expected = list(predictor.predict(images, **options))
    barrier, detect = Barrier(8, timeout=60), predictor._detect_augmented

    def detect_together(*arguments):
        barrier.wait()  # no thread finishes before all have started
        return detect(*arguments)

    monkeypatch.setattr(predictor, "_detect_augmented", detect_together)
    with ThreadPoolExecutor(8) as pool:
        detections = pool.map(lambda image: list(predictor.predict(image, **options)), images)
        for one, [other] in zip(expected, detections, strict=True):
            assert same(one, other, atol=1e-4)


def test_sources_are_read_lazily(predictor):
    asked = []

    def endless():
        while True:
            asked.append(len(asked))
            yield picture(seed=len(asked))

    results = predictor.predict(endless(), workers=1)
    assert [len(next(results)) > 0 for _ in range(3)] == [True] * 3
    results.close()
    assert len(asked) <= 6


def test_unreadable_images_among_readable_ones(predictor, tmp_path):
    for name in ("a.png", "c.png"):
        cv2.imwrite(str(tmp_path / name), picture())
    (tmp_path / "b.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"b\.png"):
        list(predictor.predict(tmp_path))
    errors = []
    results = list(predictor.predict(tmp_path, on_error=lambda name, error: errors.append(name), batch_size=2))
    assert [result.path[-5:] for result in results] == ["a.png", "c.png"]
    assert errors == [str(tmp_path / "b.png")]


def test_a_detector_without_an_rpn_runs_selective_search():
    options = FastRCNNOptions(
        backbone=ResNetOptions(depth=18, norm="batch"),
        neck=FPNOptions(channels=32),
        box_head=BoxHeadOptions(layers=1, channels=32),
        postprocess=PostprocessOptions(score_threshold=0.01),
    )
    predictor, image = Predictor(checkpoint(options)), picture(128, 192)
    [result] = predictor.predict(image)
    frame = Frame(image)
    assert len(result) and len(predictor._search(frame)) <= 50
    [mirrored] = predictor.predict(image, flip=True)
    assert len(mirrored)


def test_a_large_image_is_searched_at_a_smaller_size(monkeypatch):
    options = FastRCNNOptions(
        backbone=ResNetOptions(depth=18, norm="batch"), neck=FPNOptions(channels=32), box_head=BoxHeadOptions()
    )
    predictor, frame = Predictor(checkpoint(options)), Frame(picture(128, 192))
    monkeypatch.setattr("detect.prediction.predictor.MAX_PIXELS", 64 * 96)
    monkeypatch.setattr(selective_search, "MAX_PIXELS", 64 * 96)
    boxes = predictor._search(frame)
    assert [0, 0, 192, 128] in boxes.tolist()  # the whole image
    assert len(boxes) > 10 and (boxes[:, 2:] > boxes[:, :2]).all()
    monkeypatch.undo()
    near = box_iou(boxes, predictor._search(frame)).amax(dim=1)
    assert near.mean() > 0.7


def test_invalid_options(predictor):
    for options, message in (
        ({"batch_size": 0}, "batch_size: 0; give a whole number of 1 or more"),
        ({"score": 2}, "score: 2; give a number from 0 to 1"),
        ({"device": "abacus"}, r"device: abacus: .*; give cpu, cuda, or auto"),
        ({"scales": []}, "scales: .*; give factors"),
    ):
        with pytest.raises(UserError, match=message):
            predictor.predict(picture(), **options)


def test_a_loaded_checkpoint_gives_the_same_results(predictor, tmp_path):
    whole = predictor.checkpoint
    card = model_card(whole.config, whole.classes, whole.category_ids)
    state = {f"model.{key}": value for key, value in whole.model.state_dict().items()}
    torch.save({"detect": card, "state_dict": state}, tmp_path / "a.ckpt")
    loaded = detect.load(str(tmp_path / "a.ckpt"))
    cv2.imwrite(str(tmp_path / "a.png"), picture())
    [one], [other] = loaded.predict(tmp_path / "a.png"), predictor.predict(decode(tmp_path / "a.png"))
    assert loaded.classes == CLASSES and loaded.category_ids == (7, 9) and same(one, other)


# ---- masks -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def masks() -> Predictor:
    """A small random detector with different masks."""
    options = MaskRCNNOptions(
        backbone=ResNetOptions(depth=18, norm="batch"),
        neck=FPNOptions(channels=32),
        rpn=RPNOptions(anchor_sizes=(8, 16, 32, 48, 64), testing=ProposalCounts(100, 30)),
        box_head=BoxHeadOptions(layers=1, channels=32),
        masks=MaskHeadOptions(convolutions=1, channels=16, norm="batch"),
        postprocess=PostprocessOptions(score_threshold=0.4, max_detections=60),
    )
    given = checkpoint(options)
    nn.init.normal_(given.model.mask_head.predictor.weight)
    return Predictor(given)


def test_results_have_the_masks_of_the_detections(masks):
    image = picture()
    [result] = masks.predict(image)
    images = Images(torch.from_numpy(image).permute(2, 0, 1)[None], torch.tensor([[64, 96]]))
    detections = masks.checkpoint.model.detect(images)
    assert masks.predicts_masks and result.mask_probabilities.std() > 0.05
    np.testing.assert_allclose(result.mask_probabilities, detections.masks[0, detections.valid[0]], atol=1e-4)
    assert result.masks.shape == (len(result), 64, 96) and 0 < result.masks.mean() < 1


def test_a_detector_of_boxes_has_no_masks(predictor):
    [result] = predictor.predict(picture())
    assert not predictor.predicts_masks and result.mask_probabilities is None


def test_no_detections_have_no_masks(masks):
    [result] = masks.predict(picture(), score=1.0)
    assert len(result) == 0 and result.mask_probabilities.shape == (0, 28, 28) and result.masks.shape == (0, 64, 96)


def test_masks_in_batches_and_of_chosen_classes(masks):
    images = [picture(64, 96, seed) for seed in range(3)]
    alone, together = [list(masks.predict(images, batch_size=size)) for size in (1, 3)]
    for one, other in zip(alone, together, strict=True):
        assert same(one, other)
        np.testing.assert_allclose(one.mask_probabilities, other.mask_probabilities, atol=1e-4)
    [dust] = masks.predict(images[0], classes="dust")
    chosen = alone[0].mask_probabilities[alone[0].labels == 1]
    np.testing.assert_allclose(dust.mask_probabilities, chosen, atol=1e-5)


def test_masks_are_flipped_in_a_flipped_image(masks):
    image = picture()
    [one] = masks.predict(image, flip=True)
    [other] = masks.predict(np.ascontiguousarray(image[:, ::-1]), flip=True)
    np.testing.assert_allclose(one.scores, other.scores, atol=1e-5)
    np.testing.assert_allclose(one.mask_probabilities, other.mask_probabilities[..., ::-1], atol=1e-3)
    assert (one.masks != other.masks[..., ::-1]).mean() < 1e-3


def test_masks_of_bf16_weights_are_close(masks):
    [one], [other] = (masks.predict(picture(), precision=precision) for precision in ("fp32", "bf16"))
    assert other.mask_probabilities.dtype == np.float32
    near = np.abs(one.boxes[:, None] - other.boxes).max(axis=-1) < 2
    rows, columns = np.nonzero(near & (one.labels[:, None] == other.labels))
    assert len(rows) > len(one) / 2
    assert np.abs(one.mask_probabilities[rows] - other.mask_probabilities[columns]).mean() < 0.05
