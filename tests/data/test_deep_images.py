"""Images of 12 bits in files of 16."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from detect.data.decode import decode
from detect.data.deep_images import has_16_bits, log_12_bit, write_scaled
from detect.data.defects import DefectLog
from detect.errors import UserError


def save(path, limit, channels=3, seed=0, kind=np.uint16):
    pixels = np.random.default_rng(seed).integers(0, limit, (20, 30, channels)).astype(kind)
    cv2.imwrite(str(path), pixels[..., 0] if channels == 1 else pixels)
    return path


def defects(paths):
    log = DefectLog(Path("root"), "train")
    log_12_bit(paths, np.full((len(paths), 2), 9, np.int64), log)
    try:
        log.raise_refused()
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("count", [1, 4, 20])
def test_images_of_12_bits_are_recognised(tmp_path, suffix, count):
    channels = 1 if suffix == "tif" else 3
    paths = [save(tmp_path / f"{index}.{suffix}", 2**12, channels, index) for index in range(count)]
    shown = min(count, 8)
    text = f"1 × 12-bit-images, first {paths[0]}: {shown} of {shown} images with 16 bits per value have no value above"
    assert text in defects(paths) and "--fix OUT" in defects(paths)
    assert all(map(has_16_bits, paths))


def test_other_images_are_not(tmp_path):
    deep = [save(tmp_path / f"deep{index}.png", 2**16, seed=index) for index in range(4)]
    dark = [save(tmp_path / f"dark{index}.png", 2**12, seed=index) for index in range(2)]
    plain = [save(tmp_path / f"plain{index}.png", 256, kind=np.uint8) for index in range(9)]
    Image.fromarray(np.full((9, 9), 7, np.uint8)).save(tmp_path / "grey.tif")
    assert defects(deep) == defects([*deep, *dark]) == defects(plain) == defects([]) == ""
    assert defects([*plain, *dark]) == ""  # two of eleven images prove nothing
    assert not any(map(has_16_bits, [*plain, tmp_path / "grey.tif"]))
    blank = [tmp_path / f"blank{index}.png" for index in range(4)]
    for path in blank:
        cv2.imwrite(str(path), np.zeros((9, 9), np.uint16))
    assert defects(blank) == ""


@pytest.mark.parametrize(("suffix", "channels"), [("png", 1), ("png", 3), ("tif", 1)])
def test_the_scaled_image_has_the_upper_8_of_12_bits(tmp_path, suffix, channels):
    path, target = save(tmp_path / f"a.{suffix}", 2**12, channels), tmp_path / f"b.{suffix}"
    assert decode(path).max() < 16 and write_scaled(path, target)
    values = np.random.default_rng(0).integers(0, 2**12, (20, 30, channels))
    values = values[..., ::-1] if channels == 3 else values.repeat(3, axis=-1)
    np.testing.assert_array_equal(decode(target), values >> 4)
    assert not write_scaled(target, tmp_path / "c.png") and not (tmp_path / "c.png").exists()
