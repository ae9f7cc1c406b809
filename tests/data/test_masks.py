"""Masks in files, in batches and in images stand for the same pixels."""

import os
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from torch.nn import functional as F

from detect.data.datamodule import DetectionData
from detect.data.masks import (
    RLE,
    LabelledPixels,
    Polygons,
    Window,
    bounds,
    crop,
    encode,
    paste,
    paste_all,
    paste_whole,
    refit,
    segmentation,
)
from detect.data.options import DataOptions
from detect.data.transforms import Augmentation
from detect.errors import UserError

DATA = Path(os.environ.get("DETECT_DATA", Path(__file__).parents[2].parent / "shared" / "data"))
HEIGHT, WIDTH = 40, 60


def rectangle(x1, y1, x2, y2) -> Polygons:
    return Polygons((np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2)], np.float64),))


def filled(x1, y1, x2, y2, value=1) -> np.ndarray:
    bitmap = np.zeros((HEIGHT, WIDTH), np.uint8)
    bitmap[y1:y2, x1:x2] = value
    return bitmap


def blob(seed: int, height=HEIGHT, width=WIDTH) -> tuple[np.ndarray, np.ndarray]:
    """Return a random bitmap and a box around its polygon that is not on whole pixels."""
    random = np.random.default_rng(seed)
    angles = np.sort(random.uniform(0, 2 * np.pi, 9))
    extent = np.array([width, height]) * random.uniform(0.15, 0.45, 2)
    centre = np.array([width, height]) * random.uniform(0.4, 0.6, 2)
    points = centre + extent * random.uniform(0.5, 1, (9, 1)) * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    box = np.concatenate([points.min(axis=0), points.max(axis=0)])
    return Polygons((points,)).bitmap(height, width), np.clip(box, 0, [width, height] * 2)


# ---- in files --------------------------------------------------------------------------------------------------------


def test_polygons_are_a_union():
    both = Polygons((rectangle(2, 3, 10, 8).outlines[0], rectangle(6, 3, 20, 8).outlines[0]))
    assert np.array_equal(both.bitmap(HEIGHT, WIDTH), filled(2, 3, 20, 8))
    assert both.area() == 8 * 5 + 14 * 5  # of the polygons, as COCO's files have it
    assert np.array_equal(both.scaled(2, 0.5).outlines[0][2], [20, 4])
    assert segmentation(both, HEIGHT, WIDTH)[0] == [2, 3, 10, 3, 10, 8, 2, 8]


def test_corners_far_outside_of_the_image_cost_nothing():
    far = rectangle(-1e12, -1e12, 1e12, 1e12)
    assert far.bitmap(HEIGHT, WIDTH).all()


@pytest.mark.parametrize("seed", range(4))
def test_polygons_are_rasterised_like_pycocotools(seed):
    """Also with corners outside of the image, which are clipped only far away from it."""
    random = np.random.default_rng(seed)
    outlines = [random.uniform(-0.9, 1.9, (count, 2)) * (WIDTH, HEIGHT) for count in (3, 4, 9)]
    parts = coco_mask.frPyObjects([outline.ravel().tolist() for outline in outlines], HEIGHT, WIDTH)
    expected = coco_mask.decode(coco_mask.merge(parts))
    assert np.array_equal(Polygons(tuple(outlines)).bitmap(HEIGHT, WIDTH), expected)


def test_run_lengths_are_those_of_the_bitmap():
    bitmap = filled(5, 6, 7, 9)
    rle = encode(bitmap)
    assert np.array_equal(rle.bitmap(HEIGHT, WIDTH), bitmap) and rle.area() == 6
    assert rle.segmentation() == {"size": [HEIGHT, WIDTH], "counts": rle.counts.decode()}
    with pytest.raises(ValueError, match="the mask is 60 × 40, the image 61 × 40"):
        rle.bitmap(HEIGHT, WIDTH + 1)


def test_pixels_of_one_value_in_a_picture(tmp_path):
    from PIL import Image

    picture = Image.fromarray(filled(1, 2, 9, 9) + filled(3, 4, 5, 6), mode="P")
    picture.putpalette([0, 0, 0, 200, 0, 0, 0, 200, 0])
    picture.save(tmp_path / "a.png")
    mask = LabelledPixels(tmp_path / "a.png", 2)
    assert np.array_equal(mask.bitmap(HEIGHT, WIDTH), filled(3, 4, 5, 6)) and mask.area() == 4
    assert isinstance(mask.rle(HEIGHT, WIDTH), RLE)


def test_a_window_of_runs():
    mask = Window(4, 5, 3, 2, np.array([1, 2, 0, 3]))  # row by row: 0 1 1, 1 1 1
    expected = filled(4, 5, 7, 7)
    expected[5, 4] = 0
    assert np.array_equal(mask.bitmap(HEIGHT, WIDTH), expected)
    with pytest.raises(ValueError, match="do not cover its window"):
        Window(4, 5, 3, 2, np.array([1, 2])).bitmap(HEIGHT, WIDTH)


def test_bounds():
    assert bounds(filled(3, 4, 9, 11)) == (3, 4, 9, 11)
    assert bounds(np.zeros((3, 3), np.uint8)) is None


# ---- crops for training ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_a_crop_has_the_covered_part_of_each_cell(seed):
    """Compared with the mean of 16 × 16 samples in each cell."""
    bitmap, box = blob(seed)
    size, samples = 7, 16
    xs = np.linspace(box[0], box[2], 2 * size * samples + 1)[1::2]
    ys = np.linspace(box[1], box[3], 2 * size * samples + 1)[1::2]
    values = bitmap[np.floor(ys).astype(int)[:, None], np.floor(xs).astype(int)]
    expected = values.reshape(size, samples, size, samples).mean(axis=(1, 3))
    assert np.abs(crop(bitmap, box, size) / 255 - expected).max() < 0.06


def test_crops_of_whole_pixels_are_exact():
    bitmap = filled(10, 10, 20, 18)
    assert (crop(bitmap, [10, 10, 20, 18]) == 255).all()
    assert (crop(bitmap, [0, 10, 20, 18], 4)[:, 2:] == 255).all() and not crop(bitmap, [0, 10, 20, 18], 4)[:, :2].any()
    assert (crop(bitmap, [9, 10, 11, 18], 1) == 128).all()
    assert (crop(filled(0, 0, WIDTH, HEIGHT), [0, 0, WIDTH, HEIGHT]) == 255).all()


def test_a_crop_stands_for_its_mask():
    """At the size of photographs; small images have only few pixels to compare."""
    ious = []
    for seed in range(20):
        bitmap, box = blob(seed, 240, 320)
        pasted = paste_whole(crop(bitmap, box) / np.float32(255), box, 240, 320)
        ious.append((bitmap & pasted).sum() / (bitmap | pasted).sum())
    assert np.mean(ious) > 0.995 and min(ious) > 0.98


# ---- pasting ---------------------------------------------------------------------------------------------------------


def sampled(probabilities: np.ndarray, box: np.ndarray, height: int, width: int) -> np.ndarray:
    """Paste with the formula of detectron2: `grid_sample` at the centres of all pixels."""
    x1, y1, x2, y2 = box
    xs = (np.arange(width) + 0.5 - x1) / (x2 - x1) * 2 - 1
    ys = (np.arange(height) + 0.5 - y1) / (y2 - y1) * 2 - 1
    grid = torch.from_numpy(np.stack(np.meshgrid(xs, ys), axis=-1)).float()
    values = F.grid_sample(torch.from_numpy(probabilities)[None, None], grid[None], align_corners=False)
    return values[0, 0].numpy()


@pytest.mark.parametrize("seed", range(10))
def test_pasting_is_detectron2s(seed):
    random = np.random.default_rng(seed)
    coarse = torch.from_numpy(random.random((1, 1, 4, 4)).astype(np.float32))
    probabilities = F.interpolate(coarse, (28, 28), mode="bicubic")[0, 0].numpy()
    corner, extent = random.uniform(-20, 40, 2), random.uniform(0.5, 60, 2)
    box = np.concatenate([corner, corner + extent])
    values = sampled(probabilities, box, HEIGHT, WIDTH)
    ours = paste_whole(probabilities, box, HEIGHT, WIDTH)
    sure = np.abs(values - 0.5) > 0.02  # OpenCV interpolates in steps of 1/32 of a cell
    assert np.array_equal(ours[sure], (values >= 0.5)[sure]) and sure.mean() > 0.7


@pytest.mark.parametrize("box", [(5, 5, 5, 9), (9, 9, 3, 3), (100, 100, 120, 130), (-50, -50, -10, -10)])
def test_boxes_without_pixels_have_empty_masks(box):
    window, left, top = paste(np.ones((28, 28), np.float32), box, HEIGHT, WIDTH)
    assert not window.any() and left >= 0 and top >= 0
    assert not paste_whole(np.ones((28, 28), np.float32), box, HEIGHT, WIDTH).any()


def test_all_masks_are_pasted_separately():
    boxes = np.array([[2, 2, 20, 30], [10, 5, 50, 35]], np.float32)
    masks = paste_all(np.ones((2, 28, 28), np.float32), boxes, HEIGHT, WIDTH)
    assert [mask.area() for mask in masks] == [18 * 28, 40 * 30]
    assert paste_all(np.ones((0, 28, 28), np.float32), boxes[:0], HEIGHT, WIDTH) == ()


# ---- augmentation and batches ----------------------------------------------------------------------------------------


def test_a_box_shrinks_to_its_rotated_mask_only_if_it_fitted_before():
    boxes = np.array([[10, 10, 20, 20], [0, 0, 30, 30], [10, 10, 20, 20], [10, 10, 20, 20]], np.float32)
    before = np.stack([filled(10, 10, 20, 20), filled(10, 10, 20, 20), filled(0, 0, 0, 0), filled(10, 10, 20, 20)])
    moved = np.array([[5, 5, 25, 25], [5, 5, 25, 25], [5, 5, 25, 25], [5, 5, 25, 25]], np.float32)
    after = np.stack([filled(8, 5, 22, 24), filled(8, 5, 22, 24), filled(0, 0, 0, 0), filled(0, 0, 0, 0)])
    fitted, remains = refit(boxes, before, moved, after)
    assert fitted[0].tolist() == [8, 5, 22, 25]  # sides within a pixel stay
    assert fitted[1].tolist() == fitted[2].tolist() == [5, 5, 25, 25]
    assert remains.tolist() == [True, True, True, False]


def test_a_box_fits_the_part_of_the_mask_within_it():
    """A reflected border repeats an object: each of its boxes is a copy, and the mask has the pixels of all copies."""
    boxes = np.float32([[0, 10, 10, 20]] * 3)
    before = np.stack([filled(0, 10, 10, 20)] * 3)
    after = np.stack([filled(2, 12, 8, 18) | filled(20, 12, 26, 18)] * 3)
    fitted, remains = refit(boxes, before, np.float32([[0, 10, 10, 20], [18, 10, 28, 20], [11, 20, 15, 30]]), after)
    assert fitted[:2].tolist() == [[2, 12, 8, 18], [20, 12, 26, 18]]
    assert remains.tolist() == [True, True, False]


@pytest.mark.parametrize("step", [{"Affine": {"scale": [0.5, 0.5], "border_mode": 4, "p": 1.0}}])
def test_each_copy_of_a_reflected_object_has_its_own_mask(step):
    mask = filled(4, 8, 14, 18)
    out = Augmentation([step])(np.zeros((HEIGHT, WIDTH, 3), np.uint8), np.float32([[4, 8, 14, 18]]), 0, mask[None])
    assert len(out.kept) > 1
    before = np.repeat(mask[None], len(out.kept), axis=0)
    fitted, remains = refit(np.float32([[4, 8, 14, 18]] * len(out.kept)), before, out.boxes, out.masks[out.kept])
    assert remains.all() and np.abs(fitted - out.boxes).max() <= 1


def coco_mini(**options) -> DataOptions:
    root = DATA / "coco_mini"
    if not root.exists():
        pytest.skip(f"{root} is absent; set DETECT_DATA")
    return DataOptions(root=root, val=None, workers=0, short_side=(320,), long_side=533, **options)


@pytest.mark.parametrize(
    "augment", [(), ({"HorizontalFlip": {"p": 1.0}},), ({"Affine": {"rotate": [20, 20], "p": 1.0}},)]
)
def test_masks_of_a_batch_stand_for_the_objects(augment):
    data = DetectionData(coco_mini(augment=augment), masks=True)
    loader = data._loader(data.train, 2, data._resizes, data._augmentation)
    batch = next(iter(loader))
    targets = batch.targets
    assert targets.masks.shape == (*targets.valid.shape, 56, 56) and targets.masks.dtype == torch.uint8
    assert not targets.masks[~targets.valid].any()
    for box, mask in zip(targets.boxes[targets.valid], targets.masks[targets.valid], strict=True):
        # The box fits: each of its sides has a part of the mask, up to a cell.
        if mask.any() and (box[2:] - box[:2]).min() > 20:
            assert all(side.any() for side in (mask[:3], mask[-3:], mask[:, :3], mask[:, -3:]))


def test_masks_of_a_batch_are_those_of_the_files():
    """Pasted into the image in the file, each is the mask that was read, or nothing where there was none."""
    data = DetectionData(coco_mini(), masks=True)
    records = {record.id: record for record in data.train.records}
    ious = []
    for batch in islice(data.eval_loader(data.train), 12):
        targets = batch.targets
        for row, id in enumerate(batch.ids.tolist()):
            record, valid = records[id], targets.valid[row]
            boxes = (targets.boxes[row][valid] / batch.scales[row].repeat(2)).numpy()
            assert int(valid.sum()) == len(record.masks)
            for mask, box, crop_ in zip(record.masks, boxes, targets.masks[row][valid].numpy(), strict=True):
                if mask is None:
                    assert not crop_.any()
                    continue
                read = mask.bitmap(record.height, record.width)
                pasted = paste_whole(crop_ / np.float32(255), box, record.height, record.width)
                ious.append((read & pasted).sum() / (read | pasted).sum())
    assert len(ious) > 50 and np.mean(ious) > 0.99 and np.mean(np.array(ious) >= 0.95) > 0.97


def test_a_flip_moves_masks_like_boxes():
    plain, flipped = (DetectionData(coco_mini(augment=({"HorizontalFlip": {"p": p}},)), masks=True) for p in (0.0, 1.0))
    one, other = (
        next(iter(data._loader(data.train, 2, data._resizes, data._augmentation))) for data in (plain, flipped)
    )
    assert torch.equal(one.ids, other.ids) and torch.equal(one.targets.valid, other.targets.valid)
    difference = (one.targets.masks.float() - other.targets.masks.flip(-1).float()).abs()
    assert difference.mean() < 0.5 and torch.equal(one.targets.labels, other.targets.labels)


def test_masks_are_loaded_only_if_wanted():
    data = DetectionData(coco_mini())
    assert all(record.masks is None for record in data.train.records)
    assert next(iter(data.eval_loader(data.train))).targets.masks is None


def test_an_object_without_a_mask_has_an_empty_one_and_a_set_without_masks_is_refused():
    data = DetectionData(coco_mini(), masks=True)
    dataset = data.train
    first = replace(dataset.records[0], masks=(None,) * len(dataset.records[0].boxes))
    one = replace(dataset, records=(first,))
    assert not next(iter(data.eval_loader(one))).targets.masks.any()
    from detect.data.limits import refuse_without_masks

    refuse_without_masks(dataset)
    with pytest.raises(UserError, match="no object of the split train2017 has a mask"):
        refuse_without_masks(one)
