"""Division of a split by class, with near-equal images in one part."""

import os
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detect.curation.convert import convert
from detect.curation.divide import divide, stratify
from detect.curation.regroup import merge_copy, split_copy
from detect.curation.shapes import make_shapes
from detect.data.dataset import Dataset
from detect.data.options import DataOptions
from detect.data.read import read, splits
from detect.data.splits import Splits
from detect.errors import UserError

DATA = Path(os.environ.get("DETECT_DATA", Path(__file__).parents[2].parent / "shared" / "data"))


def shares(counts, fractions, seed=0, sizes=None) -> np.ndarray:
    """Return the share of each class's images, and of all images, in each part."""
    counts = np.asarray(counts)
    sizes = np.ones(len(counts), np.int64) if sizes is None else np.asarray(sizes)
    table = np.column_stack([counts, sizes])
    parts = stratify(counts, sizes, fractions, seed)
    totals = np.stack([table[parts == part].sum(axis=0) for part in range(len(fractions) + 1)])
    return totals / table.sum(axis=0)


# ---- stratification --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_every_part_has_its_share_of_every_class(seed):
    drawn = np.random.default_rng(seed).random((1000, 4)) < [0.9, 0.5, 0.1, 0.02]
    for fractions in ([0.2], [0.2, 0.1]):
        expected = np.array([1 - sum(fractions), *fractions])[:, None]
        found = shares(drawn.astype(np.int64), fractions, seed)
        np.testing.assert_allclose(found[:, -1:], expected, atol=0.01)
        np.testing.assert_allclose(found[:, :-2], np.broadcast_to(expected, (len(expected), 3)), atol=0.03)
        assert (found > 0).all()


def test_rare_classes_are_in_every_part_if_they_can_be():
    """One image of a class goes into part 0; two go into two parts."""
    counts = np.zeros((20, 3), np.int64)
    counts[0, 0] = counts[1:3, 1] = counts[:, 2] = 1
    parts = stratify(counts, np.ones(20, np.int64), [0.1, 0.1], 0)
    assert parts[0] == 0 and sorted(parts[1:3]) == [0, 1] and Counter(parts.tolist()) == {0: 16, 1: 2, 2: 2}


def test_a_class_that_follows_rarer_ones_is_still_in_every_part():
    """All images of class 0 have a class of their own, too, whose single image would go into part 0."""
    counts = np.hstack([np.ones((4, 1), np.int64), np.eye(4, dtype=np.int64)[:, :3]])
    parts = stratify(counts, np.ones(4, np.int64), [0.25], 0)
    assert sorted(parts) == [0, 0, 0, 1] and parts[3] == 1, "the only image that no other class needs"


def test_large_groups_are_whole_and_part_of_the_shares():
    sizes = [30, 10, 10, *[1] * 50]
    counts = np.array(sizes)[:, None]
    np.testing.assert_allclose(shares(counts, [0.3], sizes=sizes)[:, -1], [0.7, 0.3], atol=0.01)


def test_images_without_boxes_and_the_seed():
    none = np.zeros((10, 0), np.int64)
    divisions = {tuple(stratify(none, np.ones(10, np.int64), [0.3], seed).tolist()) for seed in range(8)}
    assert len(divisions) > 4 and all(sum(parts) == 3 for parts in divisions)
    assert len({tuple(stratify(none, np.ones(10, np.int64), [0.3], 7)) for _ in range(3)}) == 1


# ---- near-equal images -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shapes"
    return make_shapes(folder, images={"train": 20, "val": 5}, size=(64, 96), progress=False)


@pytest.fixture
def twins(shapes, tmp_path) -> Dataset:
    """The data set with copies of three of its images, one of them compressed again."""
    shutil.copytree(shapes, tmp_path / "twins")
    dataset = read(tmp_path / "twins", "train", progress=False)
    copies = []
    for number, record in enumerate(dataset.records[:3]):
        path = record.path.with_name(f"copy_{number}.jpg")
        with Image.open(record.path) as image:
            image.save(path, quality=60)
        copies.append(replace(record, path=path, id=100 + number))
    return replace(dataset, records=(*dataset.records, *copies))


@pytest.mark.parametrize("seed", range(6))
def test_near_equal_images_are_in_one_part(twins, seed):
    division = divide([twins], {"val": 0.3}, seed, progress=False)
    part_of = {name: part for part, names in division.parts[0].items() for name in names}
    assert len(part_of) == 23 and division.notes == ("6 images stay in one part with their near-duplicates",)
    for number, record in enumerate(twins.records[:3]):
        name = record.path.relative_to(twins.root)
        assert part_of[str(name.with_name(f"copy_{number}.jpg"))] == part_of[str(name)]
    assert abs(len(division.parts[0]["val"]) - 0.3 * 23) < 1.5
    assert division == divide([twins], {"val": 0.3}, seed, progress=False)


def test_images_of_a_fixed_camera_are_divided_nevertheless(shapes, tmp_path):
    record = read(shapes, "train", progress=False).records[0]
    frames = []
    for number in range(10):
        path = tmp_path / f"{number}.png"
        with Image.open(record.path) as image:
            image.putpixel((number, 0), (255, 255, 255))
            image.save(path)
        frames.append(replace(record, path=path, id=number))
    dataset = replace(read(shapes, "train", progress=False), root=tmp_path, records=tuple(frames))
    division = divide([dataset], {"val": 0.2}, 0, progress=False)
    assert len(division.parts[0]["val"]) == 2
    assert division.notes[0].startswith("10 of 10 images are near-duplicates, as of a fixed camera, and are divided")


def test_too_few_images(shapes):
    dataset = read(shapes, "train", progress=False)
    with pytest.raises(
        UserError, match=r"shapes: the split train, of 1 images, leaves none for the part val; add images"
    ):
        divide([replace(dataset, records=dataset.records[:1])], {"val": 0.2}, 0, progress=False)


@pytest.mark.skipif(not (DATA / "bccd").is_dir(), reason=f"bccd is not in DETECT_DATA ({DATA})")
def test_bccd_by_class(tmp_path):
    """Its two near-equal images, one of them in train and one in val, are in one part."""
    done = split_copy(DATA / "bccd", tmp_path / "out", {"val": 0.2, "test": 0.2}, progress=False)
    assert done.images.total() == 364 and done.images["val"] == pytest.approx(73, abs=2)
    whole = Counter()
    for split in ("train", "val", "test"):
        dataset = read(tmp_path / "out", split, progress=False)
        counts = np.bincount(np.concatenate([record.labels for record in dataset.records]), minlength=3)
        whole[split] = counts
    total = sum(whole.values())
    np.testing.assert_allclose(whole["val"] / total, 0.2, atol=0.06)
    np.testing.assert_allclose(whole["test"] / total, 0.2, atol=0.06)


# ---- copies ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["coco", "voc", "yolo"])
def test_a_divided_copy_has_every_image_once(shapes, tmp_path, format):
    convert(shapes, tmp_path / "source", format, progress=False)
    done = split_copy(tmp_path / "source", tmp_path / "out", {"val": 0.2, "test": 0.2}, progress=False)
    assert set(splits(tmp_path / "out")) == {"train", "val", "test"} and done.images.total() == 25
    copies = [read(tmp_path / "out", name, progress=False) for name in ("train", "val", "test")]
    assert {dataset.format for dataset in copies} == {format}
    assert content(*copies) == content(*(read(shapes, name, progress=False) for name in ("train", "val")))


def content(*datasets: Dataset) -> Counter:
    """Count the images with their boxes and class names."""
    return Counter(
        (record.path.read_bytes(), tuple(dataset.classes[label] for label in record.labels), record.boxes.tobytes())
        for dataset in datasets
        for record in dataset.records
    )


def test_one_split_is_divided(shapes, tmp_path):
    done = split_copy(shapes, tmp_path / "out", {"test": 0.5}, names=["val"], progress=False)
    assert done.images == {"train": 3, "test": 2} or done.images == {"train": 2, "test": 3}


def test_data_sets_are_joined(shapes, tmp_path):
    other = make_shapes(tmp_path / "other", images={"train": 4, "new": 3}, size=(64, 96), seed=1, progress=False)
    shutil.copyfile(*(read(*place, progress=False).records[0].path for place in ((shapes, "val"), (other, "train"))))
    done = merge_copy([shapes, other], tmp_path / "out", progress=False)
    assert done.images == {"train": 24, "val": 5, "new": 3}
    assert any(line.startswith("leaked-image: an image that training has too") for line in done.changed)
    assert f"absent split: {other}: there is no split val" in done.changed
    joined = Splits(DataOptions(root=tmp_path / "out"))
    for name, roots in (("train", (shapes, other)), ("val", (shapes,)), ("new", (other,))):
        assert content(joined.read(name)) == content(*(read(root, name, progress=False) for root in roots))


@pytest.mark.parametrize(
    ("fractions", "message"),
    [
        ({}, r"--val, --test: give a fraction for one of them or both, less than 1 in total"),
        ({"val": 0.5, "test": 0.5}, r"--val, --test: give a fraction"),
        ({"val": 20}, r"--val: 20; give a fraction between 0 and 1, such as 0\.2"),
    ],
)
def test_wrong_fractions(shapes, tmp_path, fractions, message):
    with pytest.raises(UserError, match=message):
        split_copy(shapes, tmp_path / "out", fractions, progress=False)
    assert not (tmp_path / "out").exists()


def test_one_data_set_is_not_joined_with_itself(shapes, tmp_path):
    (tmp_path / "link").symlink_to(shapes)
    with pytest.raises(UserError, match="shapes: this is one data set; name two or more that differ"):
        merge_copy([shapes, tmp_path / "link"], tmp_path / "out", progress=False)
    with pytest.raises(UserError, match=r"--out: .* lies in the data set"):
        merge_copy([tmp_path / "other", shapes], shapes / "out", progress=False)
