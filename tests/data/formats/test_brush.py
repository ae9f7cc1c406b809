"""Masks of Label Studio's brush, packed here bit by bit as rle-pack's format defines it."""

import json
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from detect.data.formats.brush import box_of_runs, runs_of_brush
from detect.data.read import read

WIDTH, HEIGHT = 60, 40
SIZES = (3, 4, 8, 16)


def rectangle(x1, y1, x2, y2):
    bitmap = np.zeros((HEIGHT, WIDTH), np.uint8)
    bitmap[y1:y2, x1:x2] = 1
    return bitmap


def joined(text: str) -> list[int]:
    """Return bits as bytes, padded with 0."""
    text += "0" * (-len(text) % 8)
    return [int(text[start : start + 8], 2) for start in range(0, len(text), 8)]


def header(count: int, word: int = 8) -> str:
    return bits(count, 32) + bits(word - 1, 5) + "".join(bits(size - 1, 4) for size in SIZES)


def bits(number: int, size: int) -> str:
    return f"{number:0{size}b}"


def packed(bitmap: np.ndarray, word: int = 8, literal: bool = False) -> list[int]:
    """Return the bytes of a mask whose colours are never 0, in runs or value by value."""
    values = np.full((*bitmap.shape, 4), 2**word - 1)
    values[..., 3] *= bitmap
    values = values.ravel()
    text = header(len(values), word)
    edges = [0, *(np.flatnonzero(np.diff(values)) + 1), len(values)]
    if literal:
        edges = [*range(0, len(values), 7), len(values)]
    for start, end in pairwise(edges):
        index = next(index for index, size in enumerate(SIZES) if end - start <= 2**size)
        written = values[start:end] if literal else values[start : start + 1]
        text += bits(not literal, 1) + bits(index, 2) + bits(end - start - 1, SIZES[index])
        text += "".join(bits(int(value), word) for value in written)
    return joined(text)


@pytest.mark.parametrize("literal", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_runs_and_box_are_those_of_the_bitmap(seed, literal):
    random = np.random.default_rng(seed)
    height, width = random.integers(1, 12, 2).tolist()
    bitmap = (random.random((height, width)) < random.choice([0.1, 0.5, 0.9])).astype(np.uint8)
    runs = runs_of_brush(packed(bitmap, word=int(random.integers(1, 9)), literal=literal), width, height)
    assert np.array_equal(np.repeat(np.arange(len(runs)) % 2, runs).reshape(height, width), bitmap)
    ys, xs = np.nonzero(bitmap)
    expected = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) if len(xs) else (0, 0, 0, 0)
    assert box_of_runs(runs, width) == tuple(map(float, expected))


@pytest.mark.parametrize(("value", "box"), [(0, (0, 0, 0, 0)), (1, (0, 0, 7, 5))])
def test_all_pixels_or_none(value, box):
    assert box_of_runs(runs_of_brush(packed(np.full((5, 7), value)), 7, 5), 7) == box


def test_a_mask_that_does_not_fit_or_ends_early():
    content = packed(rectangle(10, 5, 30, 25))
    for damaged in ([], content[:-2], content[:5], [*content[:-2], 256], [*content, None], [True, *content]):
        with pytest.raises(ValueError):
            runs_of_brush(damaged, WIDTH, HEIGHT)
    with pytest.raises(ValueError, match="another number of values"):
        runs_of_brush(content, WIDTH, HEIGHT + 1)
    five = bits(1, 1) + bits(0, 2) + bits(5 - 1, 3) + bits(255, 8)
    with pytest.raises(ValueError, match="last run is too long"):
        runs_of_brush(joined(header(4) + five), 1, 1)


def save(root, *contents, size=(WIDTH, HEIGHT)):
    Image.new("RGB", (WIDTH, HEIGHT)).save(root / "a.png")
    results = [
        {
            "type": "brushlabels",
            "original_width": size[0],
            "original_height": size[1],
            "value": {"format": "rle", "rle": content, "brushlabels": ["cat"]},
        }
        for content in contents
    ]
    tasks = [{"data": {"image": "a.png"}, "annotations": [{"result": results}]}]
    (root / "tasks.json").write_text(json.dumps(tasks))


def test_a_painted_object_has_its_pixels_and_their_box(tmp_path):
    one, other = rectangle(10, 5, 30, 25) - rectangle(15, 10, 20, 15), rectangle(0, 0, WIDTH, 1)
    save(tmp_path, packed(one), packed(other))
    dataset = read(tmp_path, "train")
    (record,) = dataset.records
    assert record.boxes.tolist() == [[10, 5, 30, 25], [0, 0, WIDTH, 1]] and not dataset.repaired
    assert all(
        np.array_equal(mask.bitmap(HEIGHT, WIDTH), expected)
        for mask, expected in zip(record.masks, (one, other), strict=True)
    )


def test_an_object_whose_paint_was_erased_is_left_out(tmp_path):
    save(tmp_path, packed(rectangle(0, 0, 0, 0)), packed(rectangle(10, 5, 30, 25)))
    dataset = read(tmp_path, "train")
    assert len(dataset.records[0].boxes) == 1 and [defect.rule for defect in dataset.repaired] == ["zero-area"]


def test_a_mask_of_another_size_than_its_image_is_left_out_without_its_pixels(tmp_path):
    """27 bits are enough to claim 2 ** 14 pixels: only the runs take memory."""
    side = 2**14
    repeated = bits(1, 1) + bits(3, 2) + bits(2**16 - 1, 16) + bits(255, 8)
    content = joined(header(4 * side**2) + repeated * (4 * side**2 // 2**16))
    save(tmp_path, content, size=(side, side))
    dataset = read(tmp_path, "train")
    assert dataset.records[0].masks is None and dataset.records[0].boxes.tolist() == [[0, 0, WIDTH, HEIGHT]]
    assert {defect.rule for defect in dataset.repaired} == {"mask-size", "size-mismatch"}
