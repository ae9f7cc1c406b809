"""Exact and near duplicates of images, and splits that share them."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from detect.curation.doctor import duplicates
from detect.curation.doctor.image_checks import inspect_image, inspect_images

DATA = Path(os.environ.get("DETECT_DATA", Path(__file__).parents[3].parent / "shared" / "data"))


def picture(seed, size=(200, 150)):
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC)


def save(path, pixels, **options):
    Image.fromarray(pixels).save(path, **options)
    return path


def inspect(*paths):
    return list(inspect_images(paths, workers=1, progress=False).values())


def test_none_and_one():
    assert duplicates.exact([]) == [] and duplicates.near([]) == []
    assert duplicates.unions({}) == set() and duplicates.unions({"train": {Path("a")}}) == set()


def test_the_same_pixels_whatever_the_file(tmp_path):
    same = picture(1)
    paths = [
        save(tmp_path / "a.png", same),
        save(tmp_path / "b.bmp", same),
        save(tmp_path / "c.png", picture(2)),
        save(tmp_path / "d.png", same, compress_level=1),
        save(tmp_path / "e.png", same[::-1]),
    ]
    assert duplicates.exact(inspect(*paths)) == [[paths[0], paths[1], paths[3]]]
    # The shape belongs to the pixels: these two have the same bytes.
    flat = [
        save(tmp_path / "wide.png", np.zeros((2, 8, 3), np.uint8)),
        save(tmp_path / "high.png", np.zeros((8, 2, 3), np.uint8)),
    ]
    assert duplicates.exact(inspect(*flat)) == []


def test_nearly_the_same(tmp_path):
    pixels = picture(1)
    original = save(tmp_path / "a.png", pixels)
    same = [
        save(tmp_path / "poor.jpg", pixels, quality=30),
        save(tmp_path / "small.png", cv2.resize(pixels, (100, 75), interpolation=cv2.INTER_AREA)),
        save(tmp_path / "bright.png", cv2.convertScaleAbs(pixels, alpha=0.8, beta=30)),
    ]
    other = [
        save(tmp_path / "mirror.png", pixels[:, ::-1]),
        save(tmp_path / "squeezed.png", cv2.resize(pixels, (100, 150), interpolation=cv2.INTER_AREA)),
        save(tmp_path / "else.png", picture(2)),
    ]
    pairs = duplicates.near(inspect(original, *same, *other))
    assert {(pair.first, pair.second) for pair in pairs if original in pair[:2]} == {(original, path) for path in same}
    assert {path for pair in pairs for path in pair[:2]} == {original, *same}
    assert all(duplicates.CORRELATION <= pair.correlation <= 1 for pair in pairs)
    assert [pair.correlation for pair in pairs] == sorted((pair.correlation for pair in pairs), reverse=True)


def test_pictures_of_nothing_are_not_compared(tmp_path):
    rng = np.random.default_rng(0)
    paths = [
        save(tmp_path / f"{level}.png", rng.integers(level, level + 4, (60, 80, 3), dtype=np.uint8))
        for level in (9, 200)
    ]
    assert duplicates.near(inspect(*paths)) == []


def test_the_hash_says_where_it_gets_brighter():
    ramp = np.tile(np.arange(32, dtype=np.uint8) * 8, (32, 1))
    hashes = duplicates.difference_hashes(np.stack([ramp, ramp[:, ::-1], ramp.T]))
    assert hashes.tolist() == [2**64 - 1, 0, 0]


def test_correlation_is_numpys():
    grey = np.random.default_rng(0).integers(0, 256, (3, 32, 32), dtype=np.uint8)
    vectors = duplicates.standardised(grey)
    np.testing.assert_allclose(vectors @ vectors.T, np.corrcoef(grey.reshape(3, -1)), atol=1e-5)


def test_unions_and_leaks():
    a, b, c, d = (Path(name) for name in "abcd")
    lists = {"train": {a}, "val": {b}, "test": {c}, "all": {a, b, c}, "trainval": {a, b, d}}
    whole = duplicates.unions(lists)
    assert whole == {"all", "trainval"}
    assert duplicates.leaks({"all", "train"}, {"all", "train"}, whole, lists) is None
    assert duplicates.leaks({"all", "train"}, {"val"}, whole, lists) == ("train", "val")
    assert duplicates.leaks({"trainval"}, {"test"}, whole, lists) == ("trainval", "test")
    # One split within another is a leak and no union.
    assert duplicates.unions({"train": {a, b}, "val": {b}}) == set()


def test_photographs_saved_anew_are_found_and_others_are_not(tmp_path):
    """All pairs of 40 photographs and their small, compressed copies are found, and no other pair."""
    if not (DATA / "voc2007").is_dir():
        pytest.skip(f"{DATA / 'voc2007'} is not there; set DETECT_DATA")
    paths = sorted((DATA / "voc2007" / "JPEGImages").glob("*.jpg"))[:40]
    copies = []
    for path in paths:
        with Image.open(path) as image:
            image.resize((image.width * 2 // 3, image.height * 2 // 3)).save(tmp_path / path.name, quality=40)
        copies.append(tmp_path / path.name)
    pairs = {(pair.first, pair.second) for pair in duplicates.near(inspect(*paths, *copies))}
    assert pairs == set(zip(paths, copies, strict=True))


def test_a_look_at_what_is_no_image(tmp_path):
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "folder.png").mkdir()
    assert inspect_image(tmp_path / "text.png").rule == "unreadable-image"
    assert inspect_image(tmp_path / "folder.png").rule == "missing-image"
    assert inspect_image(Path("x" * 5000)).rule in ("missing-image", "unreadable-image")
    with (tmp_path / "endless.jpg").open("wb") as file:
        file.write(b"\xff\xd8\xff")
        file.truncate(2**31)  # sparse: it needs no disk space
    assert inspect_image(tmp_path / "endless.jpg").rule == "huge-image"
