import contextlib
import http.server
import io
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from detect.data.decode import SUFFIXES, decode
from detect.errors import UserError
from detect.prediction.sources import VIDEO_SUFFIXES, Frame, count_frames, expand, files, frames, video, video_info, web

RGB = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)


def png(value, size=(5, 4)) -> bytes:
    """PNG of one colour, which identifies it."""
    return encoded(Image.new("RGB", size, (value, 0, 255 - value)))


def encoded(image, format="PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def values(stream) -> list[int]:
    return [int(frame.pixels[0, 0, 0]) for frame in stream]


def write_video(path, count=6, fourcc="MJPG", size=(48, 32), fps=12.5):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*fourcc), fps, size)
    assert writer.isOpened()
    for i in range(count):
        writer.write(np.full((size[1], size[0], 3), (20, 20, 40 * i), np.uint8))  # BGR: ever redder
    writer.release()
    return path


@contextlib.contextmanager
def listening(answer):
    """Yield the port of a server that calls `answer` with each connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    with server.accept()[0] as one:
                        answer(one)

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def folder(tmp_path):
    """Images in nested folders, beside other files; the red of each is its number in the order of the paths."""
    for number, name in enumerate(["B.png", "a/0.PNG", "a/1.png", "a/b/c.png", "a.png", "b.jpg.png", "é x.png"]):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(png(number))
    for name in ["notes.txt", "._a.png", ".hidden/d.png", "a/png"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"none")
    return tmp_path


class Errors(list):
    def __call__(self, name, error):
        self.append((name, str(error)))


def test_torch_is_not_needed():
    code = (
        "import sys, numpy; from detect.prediction.sources import frames; "
        "print(len(list(frames([numpy.zeros((2, 3), numpy.uint8)]))), 'torch' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    assert shown.split() == [b"1", b"False"]


@pytest.mark.parametrize("source", [[], (), iter([]), np.zeros((0, 4, 4, 3), np.uint8), torch.zeros(0, 3, 4, 4)])
@pytest.mark.parametrize("workers", [0, 2])
def test_an_empty_source_gives_no_frames(source, workers):
    assert list(frames(source, workers=workers)) == []
    assert count_frames(source) == (None if type(source).__name__ == "list_iterator" else 0)


@pytest.mark.parametrize("kind", [str, Path])
def test_an_image_file(kind, folder):
    source = kind(folder / "a" / "1.png")
    (frame,) = frames(source)
    assert (frame.path, frame.index, frame.reloadable) == (str(folder / "a" / "1.png"), None, True)
    np.testing.assert_array_equal(frame.pixels, decode(folder / "a" / "1.png"))
    assert frame.pixels.shape == (4, 5, 3) and count_frames(source) == 1


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_a_folder_is_read_in_the_order_of_its_paths(folder, workers):
    read = list(frames(folder, workers=workers))
    names = [Path(frame.path).relative_to(folder).as_posix() for frame in read]
    assert names == ["B.png", "a/0.PNG", "a/1.png", "a/b/c.png", "a.png", "b.jpg.png", "é x.png"]
    assert values(read) == list(range(7)) and count_frames(folder) == 7


def test_a_folder_gives_files_of_every_suffix(tmp_path):
    for suffix in SUFFIXES + VIDEO_SUFFIXES:
        (tmp_path / f"x{suffix.upper()}").write_bytes(b"")
    errors = Errors()
    assert list(frames(tmp_path, on_error=errors)) == []
    assert [Path(name).suffix.lower() for name, _ in errors] == sorted(SUFFIXES + VIDEO_SUFFIXES)
    assert count_frames(tmp_path) == len(errors)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.png", [0, 4, 5, 6]),
        ("a/?.png", [2]),
        ("a/[01].*", [1, 2]),
        ("**/*.png", [0, 2, 3, 4, 5, 6]),
        ("*", [0, 4, 5, 6]),
        ("*/*/c.png", [3]),
    ],
)
def test_a_pattern(folder, pattern, expected, monkeypatch):
    assert values(frames(str(folder / pattern))) == expected
    assert count_frames(str(folder / pattern)) == len(expected)
    monkeypatch.chdir(folder)
    read = list(frames(pattern))
    assert values(read) == expected and not Path(read[0].path).is_absolute()


def test_file_names_with_pattern_characters(tmp_path):
    odd = tmp_path / "shots [1]?"
    odd.mkdir()
    (odd / "a[0]*.png").write_bytes(png(1))
    (odd / "a0.png").write_bytes(png(2))
    assert values(frames(str(odd / "a[0]*.png"))) == [1]  # the file that is called so
    assert values(frames(str(odd / "a*.png"))) == [2, 1]
    assert values(frames(str(odd))) == [2, 1]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.jpg", "no such file or folder"),
        ("none/", "no such file or folder"),
        ("*.tif", "no image or video matches; check the pattern"),
        ("none/**/*.png", "no image or video matches"),
        ("x" * 5000, "not a valid path"),
        ("**a**/**.png/*", "no image or video matches|not a valid pattern"),
    ],
)
@pytest.mark.parametrize("function", [lambda source: next(frames(source)), count_frames])
def test_missing_paths_are_refused(folder, name, message, function):
    with pytest.raises(UserError, match=message) as caught:
        function(f"{folder}/{name}")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


@pytest.mark.parametrize("function", [lambda source: next(frames(source)), count_frames])
def test_a_folder_without_images_is_refused(tmp_path, function):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "notes.txt").write_bytes(b"")
    with pytest.raises(UserError, match=r"has no images or videos; supported are \.bmp"):
        function(tmp_path)


def test_an_empty_name_is_not_the_current_folder():
    with pytest.raises(UserError, match="'': there is no such file"):
        next(frames(""))


def test_each_linked_folder_is_read_once(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").write_bytes(png(1))
        for target in ("a", "b"):  # each leads to both: every level would double the ways
            (tmp_path / name / f"to_{target}").symlink_to(tmp_path / target)
    (tmp_path / "other.png").symlink_to(tmp_path / "a" / "x.png")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    errors = Errors()
    names = [Path(frame.path).relative_to(tmp_path).as_posix() for frame in frames(tmp_path, on_error=errors)]
    assert names == ["a/to_b/x.png", "a/x.png", "other.png"]
    assert [Path(name).name for name, _ in errors] == ["gone.png"]
    errors.clear()
    assert len(list(frames(str(tmp_path / "**" / "*.png"), on_error=errors))) == 3 and len(errors) == 1


def test_a_folder_that_cannot_be_read_is_one_error(folder, monkeypatch):
    original = Path.iterdir

    def iterdir(self):
        if self.name == "b":
            raise PermissionError(13, "Permission denied")
        return original(self)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    errors = Errors()
    assert values(frames(folder, on_error=errors)) == [0, 1, 2, 4, 5, 6]
    assert errors == [(str(folder / "a" / "b"), f"{folder / 'a' / 'b'}: the folder cannot be read (Permission denied); "
                     "check its permissions")]  # fmt: skip


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_unreadable_images_among_readable_ones(folder, workers):
    (folder / "a" / "0.PNG").write_bytes(png(1)[:-15])
    sources = [folder / "B.png", folder, "none.png", b"no image", png(9), np.zeros((2, 2)), folder / "a.png", ["a.png"]]
    errors = Errors()
    assert values(frames(sources, workers=workers, on_error=errors)) == [0, 0, 2, 3, 4, 5, 6, 9, 4]
    assert [name for name, _ in errors] == [str(folder / "a" / "0.PNG"), "none.png", "item 3", "item 5", "item 7"]
    assert "truncated" in errors[0][1] and "item 3: image of 8 bytes: this is not an image" in errors[2][1]
    assert (
        "item 5: the array has dtype float64" in errors[3][1]
        and "item 7: images cannot be read from 'list'" in errors[4][1]
    )
    assert count_frames(sources) == 9 + 5

    stream = frames(sources, workers=workers)
    assert values([next(stream), next(stream)]) == [0, 0]
    with pytest.raises(UserError, match=r"0\.PNG.*truncated"):
        next(stream)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_of_the_callers_iterator_comes_after_the_frames_before_it(workers):
    def source():
        yield png(1)
        yield png(2)
        raise RuntimeError("mine")

    stream = frames(source(), workers=workers, on_error=Errors())
    assert values([next(stream), next(stream)]) == [1, 2]
    with pytest.raises(RuntimeError, match="mine"):
        next(stream)


def test_bytes_and_buffers():
    data = encoded(Image.fromarray(RGB))
    read = list(frames([data, bytearray(data), memoryview(data)]))
    assert len(read) == 3 and count_frames(data) == 1
    for frame in read:
        np.testing.assert_array_equal(frame.pixels, RGB)
        assert frame.path is None and not frame.reloadable


PALETTE = Image.fromarray(RGB).quantize(7)
CLEAR = PALETTE.copy()
CLEAR.info["transparency"] = bytes(range(7))
TURNED = Image.Exif()
TURNED[0x0112] = 6


@pytest.mark.parametrize(
    "data",
    [
        encoded(Image.fromarray(RGB)),
        encoded(Image.fromarray(RGB), exif=TURNED),
        encoded(Image.fromarray(RGB), "TIFF", exif=TURNED),
        encoded(Image.fromarray(RGB), exif=b"Exif\0\0damaged"),
        encoded(PALETTE),
        encoded(CLEAR),
        encoded(PALETTE, "GIF"),
        encoded(Image.fromarray(RGB[..., 0])),
        encoded(Image.fromarray(RGB[..., 0] > 99)),
        encoded(Image.fromarray(RGB).convert("LA")),
        encoded(Image.fromarray(np.dstack([RGB, RGB[..., 0]]))),
        encoded(Image.fromarray(RGB[..., 0].astype(np.uint16) * 257 // 2)),
        encoded(Image.fromarray(RGB[..., 0].astype(np.uint16) * 257 // 2), "TIFF"),
    ],
    ids=["rgb", "exif", "tiff", "damaged", "palette", "clear", "gif", "grey", "bits", "la", "rgba", "16", "16tiff"],
)
def test_pil_images_give_the_pixels_of_their_files(data, tmp_path):
    with Image.open(io.BytesIO(data)) as image:
        (frame,) = frames(image)
    np.testing.assert_array_equal(frame.pixels, decode(data))
    assert frame.path is None and frame.pixels.flags.c_contiguous
    path = tmp_path / "x.png"
    path.write_bytes(data)
    np.testing.assert_array_equal(next(frames(path)).pixels, frame.pixels)


def test_a_16_bit_image_keeps_its_upper_8(tmp_path):
    Image.fromarray(np.array([[0, 255, 256], [65535, 0x1234, 0x8000]], np.uint16)).save(tmp_path / "x.png")
    assert next(frames(tmp_path)).pixels[..., 1].tolist() == [[0, 0, 1], [255, 0x12, 0x80]]


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pil_images_of_unknown_range_are_refused(mode):
    with pytest.raises(UserError, match=f"mode {mode} have no known range"):
        next(frames(Image.new(mode, (3, 3))))


def test_a_pil_image_of_a_damaged_file(tmp_path):
    (tmp_path / "x.jpg").write_bytes(encoded(Image.fromarray(np.tile(RGB, (20, 20, 1))), "JPEG")[:3000])
    errors = Errors()
    with Image.open(tmp_path / "x.jpg") as image:
        assert values(frames([image, png(1)], on_error=errors)) == [1]
    assert errors[0][0] == "item 0" and "item 0: the PIL image cannot be read" in errors[0][1]


@pytest.mark.parametrize("workers", [0, 2])
def test_pil_images_that_the_caller_closes(folder, workers):
    def source():
        for name in ("B.png", "a.png", "b.jpg.png", "é x.png"):
            with Image.open(folder / name) as image:
                yield image

    assert values(frames(source(), workers=workers)) == [0, 4, 5, 6]


@pytest.mark.parametrize(
    "array",
    [RGB, RGB[None], np.asfortranarray(RGB), RGB[::-1][::-1], np.dstack([RGB, RGB[..., 0]])],
    ids=["rgb", "batch", "fortran", "view", "alpha"],
)
def test_arrays(array):
    (frame,) = frames(array)
    np.testing.assert_array_equal(frame.pixels, RGB)
    assert frame.pixels.flags.c_contiguous and (frame.path, frame.index, frame.reloadable) == (None, None, False)
    assert not np.shares_memory(frame.pixels, array) and count_frames(array) == 1


@pytest.mark.parametrize("array", [RGB[..., 0], RGB[..., :1]])
def test_grey_arrays(array):
    np.testing.assert_array_equal(next(frames(array)).pixels, np.stack([RGB[..., 0]] * 3, axis=-1))


@pytest.mark.parametrize("workers", [0, 3])
def test_an_array_that_the_caller_overwrites(workers):
    def camera():
        buffer = np.empty((4, 5, 3), np.uint8)
        for value in range(9):
            buffer[:] = value
            yield buffer

    assert values(list(frames(camera(), workers=workers))) == list(range(9))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (RGB / 255, r"the image: the array has dtype float64; give uint8"),
        (RGB.astype(np.int64), "int64"),
        (RGB > 3, "bool"),
        (RGB.transpose(2, 0, 1), r"shape \[3, 6, 9\]; .*array.transpose\(1, 2, 0\)"),
        (RGB[..., :2], r"shape \[6, 9, 2\]"),
        (RGB[0, 0], r"shape \[3\]"),
        (np.zeros((1, 1, 4, 4, 3), np.uint8), r"shape \[1, 1, 4, 4, 3\]"),
        (np.zeros((0, 4, 3), np.uint8), "4 × 0 pixels"),
        (np.lib.stride_tricks.as_strided(RGB, (2**14, 2**14, 3), (0, 0, 0)), "16384 × 16384 pixels"),
        (np.array(["a.jpg"]), "the array has dtype <U5"),
    ],
)
def test_arrays_of_other_types_and_shapes_are_refused(array, message):
    with pytest.raises(UserError, match=message):
        next(frames(array))


CHW = torch.from_numpy(RGB).permute(2, 0, 1)


@pytest.mark.parametrize(
    "tensor",
    [
        CHW,
        CHW.contiguous(),
        CHW[None],
        CHW / 255,
        (CHW / 255).double(),
        (CHW / 255).requires_grad_(),
        CHW[None].contiguous(memory_format=torch.channels_last),
    ],
)
def test_tensors(tensor):
    (frame,) = frames(tensor)
    np.testing.assert_array_equal(frame.pixels, RGB)
    assert not np.shares_memory(frame.pixels, RGB) and frame.path is None and count_frames(tensor) == 1


def test_grey_tensors_and_batches():
    batch = torch.arange(3, dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 1, 4, 5)
    read = list(frames(batch))
    assert values(read) == [0, 1, 2] and read[0].pixels.shape == (4, 5, 3) and count_frames(batch) == 3
    half = frames(torch.full((1, 2, 2), 0.5, dtype=torch.bfloat16))
    assert values(half) == [128]


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (CHW.float(), "outside 0 … 1"),
        (CHW / 255 - 0.5, "before normalisation"),
        (torch.full((3, 4, 4), torch.nan), "outside"),
        (CHW.int(), "int32; give uint8"),
        (CHW.permute(1, 2, 0), r"shape \[6, 9, 3\]; .* tensor.permute\(2, 0, 1\)"),
        (CHW[:2], r"shape \[2, 6, 9\]"),
        (CHW[0], r"shape \[6, 9\]"),
        (torch.zeros(3, 0, 4), "4 × 0 pixels"),
    ],
)
def test_tensors_of_other_types_and_shapes_are_refused(tensor, message):
    with pytest.raises(UserError, match=message):
        next(frames(tensor))


@pytest.mark.parametrize("source", [None, 3.5, True, -1, {"a": 1}, {"a.jpg"}, [[png(1)]], [None], object(), 1 + 2j])
def test_unsupported_sources_are_refused(source):
    with pytest.raises(UserError, match=r"images cannot be read from .*; give a path"):
        next(frames(source))


def test_an_open_file_is_refused(folder):
    with (
        (folder / "a.png").open("rb") as file,
        pytest.raises(UserError, match=r"images cannot be read from \'BufferedReader\'; .*read\(\)"),
    ):
        next(frames(file))
    with pytest.raises(UserError, match=r"the bytes that its read\(\) returns"):
        count_frames(io.BytesIO(png(1)))


def test_frames_are_yielded_unchanged():
    given = Frame(RGB, "a.mp4", 3)
    assert next(frames([given])) is given and next(frames(given, workers=1)) is given


@pytest.mark.parametrize(("name", "fourcc"), [("clip.avi", "MJPG"), ("clip.MP4", "mp4v")])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_video(name, fourcc, workers, tmp_path):
    path = write_video(tmp_path / name, fourcc=fourcc)
    read = list(frames(path, workers=workers))
    assert [frame.index for frame in read] == list(range(6)) and {frame.path for frame in read} == {str(path)}
    assert read[0].pixels.shape == (32, 48, 3) and not read[0].reloadable
    means = np.array([frame.pixels.mean(axis=(0, 1)) for frame in read])
    np.testing.assert_allclose(means, [(40 * i, 20, 20) for i in range(6)], atol=6)  # RGB
    info = video_info(path)
    assert (info.fps, info.width, info.height, info.frames) == (12.5, 48, 32, 6) and count_frames(str(path)) == 6


@pytest.mark.parametrize("workers", [0, 2])
def test_videos_among_images(folder, workers):
    write_video(folder / "a" / "1.avi", count=3)
    read = list(frames([folder, folder / "a.png"], workers=workers))
    expected = ["B.png", "0.PNG", *["1.avi"] * 3, "1.png", "c.png", "a.png", "b.jpg.png", "é x.png", "a.png"]
    assert [Path(frame.path).name for frame in read] == expected
    assert count_frames([folder, folder / "a.png"]) == len(expected)


@pytest.mark.parametrize("content", [b"", b"x" * 999, None])
def test_a_broken_video(content, tmp_path):
    path = tmp_path / "clip.avi"
    if content is None:
        write_video(path)
        content = path.read_bytes()[:300]
    path.write_bytes(content)
    for function in (lambda: next(frames(path)), lambda: video_info(path)):
        with pytest.raises(UserError, match=r"clip\.avi: the video is damaged or of an unknown format"):
            function()
    errors = Errors()
    assert (
        values(frames([path, png(4)], on_error=errors)) == [4]
        and len(errors) == 1
        and count_frames([path, png(4)]) == 2
    )


def test_a_missing_video(tmp_path):
    with pytest.raises(UserError, match=r"no\.mp4: there is no such video"):
        video_info(tmp_path / "no.mp4")


@pytest.mark.parametrize("protocol", ["http", "tcp"])
def test_the_name_of_a_video_is_not_taken_for_an_address(tmp_path, monkeypatch, protocol):
    monkeypatch.chdir(tmp_path)
    asked = []
    with listening(lambda socket: asked.append(socket.recv(99))) as port:
        Path(f"{protocol}:127.0.0.1:{port}?.mp4").write_bytes(b"0")
        with pytest.raises(UserError, match="damaged or of an unknown format"):
            next(frames("."))
    assert not asked
    write_video("10:30.avi")
    assert len(list(frames("10:30.avi"))) == video_info("10:30.avi").frames == 6


@pytest.mark.parametrize("workers", [0, 1])
def test_a_truncated_video_is_an_error_after_its_frames(tmp_path, workers):
    path = write_video(tmp_path / "cut.avi", count=40)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    errors = Errors()
    read = list(frames([path, png(4)], on_error=errors, workers=workers))
    assert 5 < len(read) < 30 and read[-1].path is None
    assert len(errors) == 1 and f"only {len(read) - 1} of 40 frames can be read" in str(errors)


class FakeCapture:
    """Camera of four frames."""

    opened, released, kinds = 0, 0, None
    properties = {}  # noqa: RUF012

    def __init__(self, source):
        FakeCapture.opened += 1
        self.source, self.left = source, 4

    def isOpened(self):  # noqa: N802
        return self.source != 7

    def read(self):
        self.left -= 1
        return (True, np.full((3, 4, 3), (1, 2, 3 + self.left), np.uint8)) if self.left >= 0 else (False, None)

    def get(self, property):
        return self.properties.get(property, 0.0)

    def release(self):
        FakeCapture.released += 1


@pytest.fixture
def camera(monkeypatch):
    monkeypatch.setattr(video.cv2, "VideoCapture", FakeCapture)
    monkeypatch.setattr(FakeCapture, "opened", 0)
    monkeypatch.setattr(FakeCapture, "released", 0)


@pytest.mark.parametrize("source", [2, "camera:2", [2]])
def test_a_camera(camera, source):
    read = list(frames(source))
    assert [(frame.path, frame.index) for frame in read] == [("camera:2", i) for i in range(4)]
    assert read[0].pixels[0, 0].tolist() == [6, 2, 1] and not read[0].reloadable
    assert FakeCapture.opened == FakeCapture.released == 1
    assert count_frames(source) is None


@pytest.mark.parametrize("workers", [0, 2])
def test_a_camera_is_released_when_the_caller_stops(camera, workers):
    stream = frames(0, workers=workers)
    next(stream)
    assert FakeCapture.released == 0
    stream.close()
    assert FakeCapture.opened == FakeCapture.released == 1


@pytest.mark.parametrize(("workers", "ahead"), [(0, 0), (1, 1), (3, 1)])
def test_a_video_is_decoded_one_frame_ahead_and_a_camera_not(camera, monkeypatch, tmp_path, workers, ahead):
    read, original = [], FakeCapture.read
    monkeypatch.setattr(FakeCapture, "read", lambda self: read.append(self.source) or original(self))
    (tmp_path / "x.webm").write_bytes(b"")
    for source, most in ((tmp_path / "x.webm", ahead), (0, 0)):
        read.clear()
        stream = frames(source, workers=workers)
        next(stream)
        deadline = time.monotonic() + 30
        while len(read) < 1 + most and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
        assert len(read) == 1 + most
        stream.close()
    assert FakeCapture.opened == FakeCapture.released == 2


def test_a_missing_camera(camera):
    with pytest.raises(UserError, match="camera:7: the camera cannot be opened; check that it is plugged in"):
        next(frames(7))
    assert FakeCapture.released == 1


def test_a_video_without_frames(camera, monkeypatch, tmp_path):
    monkeypatch.setattr(FakeCapture, "read", lambda self: (False, None))
    (tmp_path / "x.webm").write_bytes(b"")
    with pytest.raises(UserError, match=r"x\.webm: no frame can be read"):
        next(frames(tmp_path / "x.webm"))


def test_video_headers_without_frame_rate_or_length(camera, monkeypatch, tmp_path):
    path = tmp_path / "x.webm"
    path.write_bytes(b"")
    with pytest.raises(UserError, match="has no frame rate"):
        video_info(path)
    for length in (0.0, -9.2e18, 9.2e18):
        properties = {cv2.CAP_PROP_FPS: 30.0, cv2.CAP_PROP_FRAME_COUNT: length}
        monkeypatch.setattr(FakeCapture, "properties", properties)
        assert video_info(path).frames is None and count_frames(path) is None


def test_memory_is_bounded_and_order_is_kept(monkeypatch):
    """At most 2 · workers images are loaded before the caller asks for them, however slow one is."""
    asked, loaded, go_on = [], [], threading.Event()
    original = expand._decode_bytes

    def load(data, name):
        if name == "item 0":
            assert go_on.wait(30)
        loaded.append(name)
        if len(loaded) == 5:  # all that may wait beside the first
            go_on.set()
        return original(data, name)

    def source():
        for value in range(40):
            asked.append(value)
            yield png(value)

    monkeypatch.setattr(expand, "_decode_bytes", load)
    stream = frames(source(), workers=3)
    assert asked == []
    most = 0
    for place, frame in enumerate(stream):
        assert values([frame]) == [place]
        most = max(most, len(asked) - place, len(loaded) - place)
    assert most == 6 and len(loaded) == 40 and loaded.index("item 0") == 5


def test_without_workers_nothing_is_read_ahead():
    asked = []

    def source():
        for value in range(5):
            asked.append(value)
            yield png(value)

    for place, _ in enumerate(frames(source())):
        assert len(asked) == place + 1


def test_threads_end_when_the_caller_stops_early():
    def threads():
        return [thread for thread in threading.enumerate() if thread.name.startswith("detect-decode")]

    endless = (png(value % 200) for value in iter(int, 1))
    stream = frames(endless, workers=4)
    assert len([next(stream) for _ in range(9)]) == 9 and threads()
    stream.close()
    assert not threads()
    for _ in frames(endless, workers=2):
        break
    assert not threads()


def test_counting_does_not_consume_iterators():
    source = (png(value) for value in range(3))
    assert count_frames(source) is None and values(frames(source)) == [0, 1, 2]


def test_counting_decodes_nothing(monkeypatch, folder):
    for module in (expand, files, web):
        monkeypatch.setattr(module, "decode", None)
    assert count_frames([folder, folder / "a.png", "https://example.org/a.jpg", RGB, CHW]) == 11


class Server(http.server.ThreadingHTTPServer):
    """Server that answers each path with `answers[path]`: a status, headers, and chunks of a body."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers, self.requests = {}, []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests.append(self.path)
        status, headers, pieces = self.server.answers[self.path]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        try:
            for piece in pieces:
                self.wfile.write(piece)
                self.wfile.flush()
        except OSError:  # the other side had enough
            pass

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    one = Server()
    thread = threading.Thread(target=one.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield one
    one.shutdown()
    thread.join()
    one.server_close()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_web_address(server, workers):
    server.answers["/a.png?size=1"] = 200, {"Content-Length": str(len(png(7)))}, [png(7)]
    server.answers["/b"] = 302, {"Location": "/a.png?size=1"}, []
    sources = [f"{server.url}/a.png?size=1", f"{server.url}/b"]
    read = list(frames(sources, download=True, workers=workers))
    assert values(read) == [7, 7] and [frame.path for frame in read] == sources and not read[0].reloadable
    assert count_frames(sources[0]) == 1


@pytest.mark.parametrize("wrap", [str, lambda url: [url]])
def test_nothing_is_downloaded_without_permission(server, wrap):
    with pytest.raises(UserError, match=r"/a\.png: downloads are disabled; enable them with download=True"):
        next(frames(wrap(f"{server.url}/a.png")))
    assert server.requests == []


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((404, {}, []), "answers 404 Not Found; check the address"),
        ((200, {}, [b"<html>"]), "/x: image of 6 bytes: this is not an image"),
        ((200, {"Content-Length": "99"}, [png(1)[:50]]), "the transfer ended 49 bytes early"),
        ((302, {"Location": "file:///etc/hostname"}, []), "answers 302 .*file:///etc/hostname"),
        ((302, {"Location": "ftp://127.0.0.1/x.png"}, []), "which is not http"),
        ((302, {"Location": "/x"}, []), "infinite loop"),
    ],
)
def test_web_addresses_without_an_image(server, answer, message):
    server.answers["/x"] = answer
    with pytest.raises(UserError, match=message) as caught:
        next(frames(f"{server.url}/x", download=True))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://127.0.0.1:1/a.jpg", "the download failed .*refused"),
        ("http://[bad/a.jpg", "not a valid address"),
        ("http://127.0.0.1:1/a b\n.jpg", "white space.*%20"),
        ("http://127.0.0.1:1/é.jpg", "the download failed"),
        ("http://127.0.0.1:x/a.jpg", "not a valid address|the download failed"),
        ("ftp://127.0.0.1/a.jpg", "only http and https are supported"),
        ("file:///etc/hostname", "only http and https are supported"),
        ("http://127.0.0.1:1/a.MP4?x", "videos are not downloaded"),
    ],
)
def test_invalid_web_addresses(url, message, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with pytest.raises(UserError, match=message) as caught:
        next(frames(url, download=True))
    assert "\n" not in str(caught.value)


def test_downloads_are_limited_in_size_and_time(server, monkeypatch):
    monkeypatch.setattr(web, "MAX_DOWNLOAD", 2**20)
    server.answers["/large"] = 200, {}, [b"x" * 2**18] * 99
    with pytest.raises(UserError, match="more than 1 MiB"):
        next(frames(f"{server.url}/large", download=True))

    monkeypatch.setattr(web, "MAX_SECONDS", 0.2)
    server.answers["/slow"] = 200, {}, (time.sleep(0.05) or b"x" for _ in range(50))
    with pytest.raises(UserError, match="takes more than 0 s"):
        next(frames(f"{server.url}/slow", download=True))

    def drip(socket):
        socket.recv(2**12)
        with contextlib.suppress(OSError):
            for byte in b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 90:
                socket.sendall(bytes([byte]))
                time.sleep(0.02)

    with listening(drip) as port, pytest.raises(UserError, match="takes more than 0 s"):
        next(frames(f"http://127.0.0.1:{port}/headers", download=True))

    monkeypatch.setattr(web, "TIMEOUT", 0.1)
    server.answers["/silent"] = 200, {}, (time.sleep(0.4) or b"x" for _ in range(1))
    with pytest.raises(UserError, match="timed out"):
        next(frames(f"{server.url}/silent", download=True))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_pipes_are_not_opened(tmp_path):
    for name in ("a.png", "b.mp4"):
        os.mkfifo(tmp_path / name)
    (tmp_path / "c.png").write_bytes(png(3))
    errors = Errors()
    assert values(frames(tmp_path, on_error=errors)) == [3] and len(errors) == 2
