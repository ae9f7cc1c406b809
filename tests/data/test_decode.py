"""Every image format decodes to the same RGB, and every hostile file raises a UserError."""

import io
import os
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from detect.data.decode import check_image, decode, image_size, orientation
from detect.errors import UserError

RGB = np.kron(np.random.default_rng(0).integers(0, 256, (3, 4, 3), dtype=np.uint8), np.ones((8, 8, 1), dtype=np.uint8))
GREY = RGB[..., 0]


def encode(image, format, **options) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, format, **options)
    return buffer.getvalue()


def with_orientation(value) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


JPEG = encode(RGB, "JPEG", quality=95)
PROGRESSIVE = encode(RGB, "JPEG", quality=95, progressive=True)
PNG = encode(RGB, "PNG")


@pytest.fixture
def save(tmp_path):
    def write(data, name="image.jpg"):
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return write


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1)])
@pytest.mark.parametrize("format", ["JPEG", "PNG", "BMP"])
def test_the_smallest_images(size, format, save):
    path = save(encode(Image.new("RGB", size, (255, 0, 0)), format))
    pixels = decode(path)
    assert pixels.shape == (size[1], size[0], 3) and pixels.dtype == np.uint8 and pixels.flags.c_contiguous
    assert (pixels[0, 0] > [200, -1, -1]).all() and (pixels[0, 0] < [256, 20, 20]).all()  # RGB order
    assert image_size(path) == check_image(path) == size


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_give_the_pixels_back(format):
    np.testing.assert_array_equal(decode(encode(RGB, format)), RGB)


def test_webp():
    np.testing.assert_array_equal(decode(encode(RGB, "WEBP", lossless=True)), RGB)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"quality": 30}, {"subsampling": 0}])
def test_jpeg_agrees_with_pillow(options):
    data = encode(RGB, "JPEG", **options)
    expected = np.asarray(Image.open(io.BytesIO(data)))
    np.testing.assert_allclose(decode(data).astype(int), expected, atol=1)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "BMP", "TIFF", "GIF"])
def test_grey_is_repeated(format):
    pixels = decode(encode(GREY, format))
    np.testing.assert_allclose(pixels.astype(int), np.stack([GREY] * 3, axis=-1), atol=20 if format == "JPEG" else 0)
    assert (pixels == pixels[..., :1]).all()


def test_16_bits_keep_their_upper_8():
    deep = np.arange(0, 65536, 683, dtype=np.uint16).reshape(8, 12)
    expected = np.stack([deep >> 8] * 3, axis=-1)
    np.testing.assert_array_equal(decode(encode(deep, "PNG")), expected)
    np.testing.assert_array_equal(decode(encode(deep, "TIFF")), expected)
    colour = np.stack([deep, deep[::-1], deep[:, ::-1]], axis=-1)
    data = cv2.imencode(".png", colour[..., ::-1])[1].tobytes()
    np.testing.assert_array_equal(decode(data), colour >> 8)


def test_alpha_is_dropped_not_blended():
    alpha = np.full_like(GREY, 10)
    np.testing.assert_array_equal(decode(encode(np.dstack([RGB, alpha]), "PNG")), RGB)
    grey_alpha = Image.merge("LA", (Image.fromarray(GREY), Image.fromarray(alpha)))
    np.testing.assert_array_equal(decode(encode(grey_alpha, "PNG")), np.stack([GREY] * 3, axis=-1))


@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("PNG", {}),
        ("PNG", {"transparency": 3}),
        ("PNG", {"transparency": bytes(range(16))}),
        ("GIF", {}),
        ("GIF", {"transparency": 3}),
        ("BMP", {}),
    ],
)
def test_palettes(format, options):
    palette = Image.fromarray(RGB).quantize(16)
    np.testing.assert_array_equal(decode(encode(palette, format, **options)), np.asarray(palette.convert("RGB")))


def test_one_bit():
    bits = Image.fromarray(GREY).convert("1")
    np.testing.assert_array_equal(decode(encode(bits, "PNG")), np.asarray(bits.convert("RGB")))


def test_cmyk_jpeg():
    data = encode(Image.fromarray(RGB).convert("CMYK"), "JPEG", quality=100, subsampling=0)
    np.testing.assert_allclose(decode(data).astype(int), RGB, atol=6)


def test_of_several_pictures_the_first_counts(save):
    for format in ("MPO", "GIF", "TIFF"):
        path = save(encode(GREY, format, save_all=True, append_images=[Image.new("RGB", (5, 5))]))
        assert decode(path).shape == RGB.shape and check_image(path) == (32, 24)


# The stored rows of an upright mark like an F for each orientation, from the drawing in the EXIF standard.
F = np.array([[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 0, 0]], dtype=np.uint8)
STORED = {
    1: F,
    2: F[:, ::-1],
    3: F[::-1, ::-1],
    4: F[::-1],
    5: F.T,
    6: np.rot90(F),
    7: F[::-1, ::-1].T,
    8: np.rot90(F, -1),
}


@pytest.mark.parametrize("value", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_orientation(value, format, save):
    stored = np.kron(STORED[value] * 255, np.ones((16, 16), dtype=np.uint8))
    options = {"lossless": True} if format == "WEBP" else {}
    path = save(encode(np.stack([stored] * 3, axis=-1), format, exif=with_orientation(value), **options))
    pixels = decode(path)
    np.testing.assert_array_equal(pixels[8::16, 8::16, 0] > 127, F)
    assert image_size(path) == check_image(path) == (48, 64)
    if format != "TIFF":
        assert orientation(path) == value


@pytest.mark.parametrize("value", [0, 9, 99])
def test_an_orientation_without_meaning_is_ignored(value):
    np.testing.assert_array_equal(decode(encode(RGB, "PNG", exif=with_orientation(value))), RGB)


def test_damaged_exif_does_not_harm_the_image():
    data = encode(RGB, "JPEG", exif=with_orientation(6))
    damaged = data.replace(b"MM\x00*", b"\xff\xff\xff\xff").replace(b"II*\x00", b"\xff\xff\xff\xff")
    assert decode(damaged).shape == RGB.shape


@pytest.mark.parametrize("data", [JPEG, PROGRESSIVE, PNG, encode(RGB, "WEBP"), encode(RGB, "BMP"), encode(RGB, "TIFF")])
def test_truncated_anywhere_is_refused(data, save):
    for length in [*range(0, len(data) - 1, 61), len(data) - 2]:
        path = save(data[:length], "cut.jpg")
        for function in (decode, check_image):
            with pytest.raises(UserError, match=r"cut\.jpg: .*(truncated|no image|damaged)") as error:
                function(path)
            assert "\n" not in str(error.value)


def test_the_end_of_a_thumbnail_is_not_the_end_of_the_image(save):
    thumbnail = encode(RGB[:8, :8], "JPEG")
    segment = b"\xff\xe1" + (len(thumbnail) + 8).to_bytes(2, "big") + b"Exif\0\0" + thumbnail
    data = JPEG[:2] + segment + JPEG[2:]
    assert check_image(save(data)) == (32, 24)
    with pytest.raises(UserError, match="truncated"):
        check_image(save(data[:-2]))


@pytest.mark.parametrize("data", [JPEG, PROGRESSIVE, PNG])
def test_what_follows_the_end_does_not_matter(data, save):
    path = save(data + b"\0" * 100)
    assert check_image(path) == (32, 24)
    np.testing.assert_array_equal(decode(path), decode(data))


def test_too_large_is_refused_before_decoding(save):
    bomb = bytearray(PNG)
    bomb[16:24] = (50000).to_bytes(4, "big") * 2
    bomb[29:33] = zlib.crc32(bomb[12:29]).to_bytes(4, "big")
    path = save(bytes(bomb), "bomb.png")
    for function in (decode, image_size, check_image):
        with pytest.raises(UserError, match=r"bomb\.png: .*more than"):
            function(path)


def test_max_pixels_is_the_largest_size_allowed():
    assert decode(PNG, max_pixels=RGB.shape[0] * RGB.shape[1]).shape == RGB.shape
    with pytest.raises(UserError, match="32 × 24 pixels, more than 767"):
        decode(PNG, max_pixels=767)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # pytest resets the filter of the module
def test_our_limit_stands_in_the_place_of_pillows(save):
    large = bytearray(JPEG)
    start = large.index(b"\xff\xc0") + 5
    large[start : start + 4] = (10000).to_bytes(2, "big") * 2
    assert image_size(save(bytes(large))) == (10000, 10000)


def test_float_images_are_refused():
    with pytest.raises(UserError, match="mode F"):
        decode(encode(GREY.astype(np.float32), "TIFF"))


def test_missing_folder_and_empty(tmp_path, save):
    for function in (decode, image_size, check_image):
        with pytest.raises(UserError, match=r"none\.jpg: there is no such"):
            function(tmp_path / "none.jpg")
        with pytest.raises(UserError, match="no such image file"):
            function(tmp_path)
        with pytest.raises(UserError, match=r"empty\.jpg: this is not an image"):
            function(save(b"", "empty.jpg"))
    with pytest.raises(UserError, match="image of 4 bytes"):
        decode(b"\xff\xd8\xff\xe0")


def test_random_bytes_never_come_through(save):
    """Noise, noise behind a valid signature, and files with a changed byte decode or raise a UserError."""
    rng = np.random.default_rng(0)
    noise = [rng.bytes(200) for _ in range(30)]
    signatures = (JPEG[:20], PNG[:33], b"GIF89a", b"BM", b"II*\0", b"RIFF")
    heads = [signature + rng.bytes(200) for signature in signatures for _ in range(10)]
    changed = []
    for data in (JPEG, PNG, PROGRESSIVE, encode(RGB, "TIFF"), encode(RGB, "GIF")):
        for _ in range(20):
            copy = bytearray(data)
            copy[rng.integers(len(copy))] = rng.integers(256)
            changed.append(bytes(copy))
    for data in noise + heads + changed:
        try:
            assert decode(data).ndim == 3
        except UserError as error:
            assert "\n" not in str(error)


def test_the_header_of_a_png_is_all_that_is_looked_at(save, monkeypatch):
    path = save(encode(RGB, "PNG"), "image.png")
    monkeypatch.setattr(PngImageFile, "load", None)
    assert check_image(path) == image_size(path) == Image.fromarray(RGB).size
    assert orientation(path) == 1


def test_a_file_of_many_bytes_for_few_pixels_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (4, 4)).save(path)
    os.truncate(path, 2**40)  # sparse: it needs no disk space
    with pytest.raises(UserError, match=r"a\.png: 1048576 MiB are too many for 4 × 4 pixels"):
        decode(path)
