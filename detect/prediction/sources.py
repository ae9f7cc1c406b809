"""What can be predicted on, as one stream of images: files, folders, patterns, addresses, arrays, videos, cameras.

    for frame in frames(["photos/", "clip.mp4", array]): ...

The stream is lazy and its memory constant: however many images there are, only those at hand are decoded. Its order is
that of the source; folders and patterns are sorted.
"""

from __future__ import annotations

import http.client
import io
import math
import re
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Set, Sized
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from detect.data.decode import MAX_PIXELS, SUFFIXES, decode
from detect.errors import UserError
from detect.files.fence import Fence, OutsideError, is_folder

VIDEO_SUFFIXES = (".avi", ".mkv", ".mov", ".mp4", ".webm")
"""How the names of video files end, in lower case."""

_COUNTED, _WHOLE = (".avi", ".mov", ".mp4"), 0.9
"""Where the header counts frames instead of estimating them; and the share of them that a whole video has."""

MAX_DOWNLOAD = 64 * 2**20
"""Bytes of the largest image that is downloaded."""

TIMEOUT = 30.0
"""Seconds to wait for each answer of a server."""

MAX_SECONDS = 120.0
"""Seconds that one download may take, however slowly its bytes drip."""

_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_CAMERA = re.compile(r"camera:(\d+)")
_KINDS = "a path, a pattern, bytes, a PIL image, a uint8 array, a tensor, a camera's number, or a list of these"


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One image to predict on."""

    pixels: UInt8[np.ndarray, "H W 3"]
    """RGB."""
    path: str | None = None
    """The file or address that it is from, `camera:0` for a camera; None for what was given as bytes or pixels."""
    index: int | None = None
    """The place in its video or camera's stream, from 0; None for a photograph."""

    @property
    def again(self) -> bool:
        """Whether `decode` of the path gives the same pixels again, so that nobody need keep them."""
        return self.path is not None and self.index is None and not _URL.match(self.path)


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """What a video's header says of it; whoever writes one needs this first."""

    fps: float
    """Frames a second."""
    width: int
    height: int
    frames: int | None
    """The header's count, in some formats an estimate; None where there is none."""


def frames(
    source: object,
    *,
    download: bool = False,
    workers: int = 0,
    on_error: Callable[[str, UserError], None] | None = None,
) -> Generator[Frame, None, None]:
    """The images of a source, one after the other, as RGB.

    A source is one of these, or a list or an iterator of them:

    - a path, `str` or `Path`: an image, a video, or a folder, of which all images and videos below are read but hidden
      ones; or a pattern such as `photos/**/*.jpg`, of which the images and videos that match are read. What lies behind
      a link that leads out of the folder, or out of the pattern's first one, is an unreadable image
    - `http://…`, `https://…`: an image of at most `MAX_DOWNLOAD` bytes, with `download=True` alone
    - `bytes` of an image file; a `PIL.Image`, to which EXIF, palettes and 16 bits apply as to a file
    - numpy: uint8 RGB [H, W, 3], or a batch of these [B, H, W, 3]; grey [H, W]; a fourth channel, alpha, is dropped
    - torch: RGB [3, H, W], grey [1, H, W], or a batch [B, C, H, W]; uint8 in 0 … 255, or floats in 0 … 1 as ToTensor
      makes them
    - a number, or `camera:0`: a camera, until it is unplugged or the caller stops
    - a `Frame`, which stays as it is

    Args:
        source: see above.
        download: whether addresses may be fetched.
        workers: so many threads decode and download ahead while the caller computes; at most twice as many images wait.
            Of a video the next frame is decoded. Cameras and pixels are read when it is their turn.
        on_error: is told the name and the error of each file, element of a list, or image that cannot be read, and the
            stream goes on; by default the error is raised.

    Raises:
        UserError: as above, and in any case, when the first image is asked for, where a source that is no list is of no
            known kind, does not exist or holds no image.
    """
    with closing(unread(source, download)) as items, closing(_ahead(items, workers) if workers else items) as ready:
        for item in ready:
            try:
                if isinstance(item, Stream):
                    yield from item.open()
                else:
                    yield item.load()
            except UserError as error:
                if on_error is None:
                    raise
                on_error(item.name, error)


def count(source: object) -> int | None:
    """How many images `frames` will give, those that turn out to be unreadable included; nothing is decoded.

    None where only reading would tell: iterators, cameras, videos whose header does not say. In some formats a video's
    header gives an estimate. Raises `UserError` as `frames` does for a source that holds nothing.
    """
    if _is_collection(source) and not isinstance(source, Sized):
        return None
    total = 0
    for item in unread(source, download=True):  # nothing is loaded: permission is for `frames` to ask
        number = item.count() if isinstance(item, Stream) else 1
        if number is None:
            return None
        total += number
    return total


def video_info(path: str | Path) -> VideoInfo:
    """Frame rate, size and length of a video. Raises `UserError` where it cannot be opened or tells no frame rate."""
    with closing(_Capture(str(path))) as capture:
        fps, frames = capture.get(cv2.CAP_PROP_FPS), capture.frames
        width, height = capture.get(cv2.CAP_PROP_FRAME_WIDTH), capture.get(cv2.CAP_PROP_FRAME_HEIGHT)
    if not (math.isfinite(fps) and fps > 0):
        raise UserError(f"{path}: the video tells no frame rate; convert it, as with `ffmpeg -i {path} new.mp4`")
    return VideoInfo(fps, int(width), int(height), frames)


@dataclass(frozen=True, slots=True)
class Still:
    """One image that is still to be read."""

    name: str
    load: Callable[[], Frame]
    ahead: bool = True
    """Whether a thread may load it: not what its owner may change or close once the next one was asked for."""


@dataclass(frozen=True, slots=True)
class Stream:
    """A video or a camera."""

    name: str
    open: Callable[[], Generator[Frame, None, None]]
    count: Callable[[], int | None]
    ahead: bool
    """Whether a thread may read the next frame: not of a camera, where it would be old when its turn comes."""


_Items = Generator[Still | Stream, None, None]


def _ahead(items: _Items, workers: int) -> _Items:
    """The same items, whose images are loaded while they wait for their turn: at most 2 · workers of them."""
    waiting: deque[Still | Stream] = deque()
    failure: Exception | None = None
    pool = ThreadPoolExecutor(workers, thread_name_prefix="detect-decode")
    try:
        while True:
            while len(waiting) < 2 * workers and failure is None:
                try:
                    waiting.append(_begin(next(items), pool))
                except StopIteration:
                    break
                except Exception as error:  # of the caller's iterator, say: what was before it comes first
                    failure = error
            if not waiting:
                break
            yield waiting.popleft()
        if failure is not None:
            raise failure
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(item: Still | Stream, pool: ThreadPoolExecutor) -> Still | Stream:
    if isinstance(item, Stream):
        return replace(item, open=partial(_next_ahead, item.open, pool)) if item.ahead else item
    if item.ahead:
        return replace(item, load=pool.submit(item.load).result)
    future: Future[Frame] = Future()
    try:
        future.set_result(item.load())
    except UserError as error:
        future.set_exception(error)
    return replace(item, load=future.result)


def _next_ahead(
    open: Callable[[], Generator[Frame, None, None]], pool: ThreadPoolExecutor
) -> Generator[Frame, None, None]:
    """The frames of a video; while the caller has one, the next one is decoded."""
    stream = open()
    coming = pool.submit(next, stream, None)
    try:
        while (frame := coming.result()) is not None:
            coming = pool.submit(next, stream, None)
            yield frame
    finally:
        if not coming.cancel():
            wait([coming])
        stream.close()


def unread(source: object, download: bool) -> _Items:
    """A source, or each of a list, as images and streams."""
    if not _is_collection(source):
        yield from _one(source, download, "the image")
        return
    assert isinstance(source, Iterable)
    for place, element in enumerate(source):
        name = str(element) if isinstance(element, str | Path) else f"item {place}"
        try:
            yield from _one(element, download, name)
        except UserError as error:
            yield Still(name, partial(_raise, error))


def _is_collection(source: object) -> bool:
    # A file would give its lines; sets have no order to keep.
    one = str | bytes | bytearray | memoryview | np.ndarray | io.IOBase | Mapping | Set
    return isinstance(source, Iterable) and not isinstance(source, one) and not _is_tensor(source)


def _is_tensor(source: object) -> bool:
    # Who has a tensor has imported torch; nobody else need.
    return "torch" in sys.modules and isinstance(source, sys.modules["torch"].Tensor)


def _one(source: object, download: bool, name: str) -> _Items:
    """The images and streams of a source that is no list; `name` is what errors call it where it has no path."""
    match source:
        case str() if _URL.match(source):
            yield Still(source, partial(_from_url, source, download))
        case str() if camera := _CAMERA.fullmatch(source):
            yield _camera(int(camera[1]))
        case str() | Path():
            yield from _of_path(source)
        case bytes() | bytearray() | memoryview():
            yield Still(name, partial(_from_bytes, bytes(source), name))
        case int() if not isinstance(source, bool) and source >= 0:
            yield _camera(source)
        case Frame():
            yield Still(name, lambda: source)
        case Image.Image():
            yield Still(name, partial(_from_pil, source, name), ahead=False)
        case np.ndarray():
            batch = source if source.ndim == 4 else [source]
            yield from (Still(name, partial(_from_array, image, name), ahead=False) for image in batch)
        case _ if _is_tensor(source):
            tensors: Any = source
            batch = tensors if tensors.ndim == 4 else [tensors]
            yield from (Still(name, partial(_from_tensor, image, name), ahead=False) for image in batch)
        case _:
            remedy = "what its file.read() returns" if hasattr(source, "read") else _KINDS
            raise UserError(f"{name}: {_article(type(source).__name__)} is no image; give {remedy}")


def _article(noun: str) -> str:
    return f"{'an' if noun[:1].lower() in 'aeiou' else 'a'} {noun}"


def _raise(error: UserError) -> Frame:
    raise error


# Files, folders and patterns


def _of_path(source: str | Path) -> _Items:
    path, text = Path(source), str(source)
    try:
        is_dir, is_there = path.is_dir(), path.exists() and bool(text)
    except (OSError, ValueError) as error:  # a name that no file can have, such as one that is too long
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{text[:80]}…: this is no path ({reason}); give {_KINDS}") from None
    if not is_there:
        yield from _of_pattern(path, text)
    elif is_dir:
        found = _of_folder(path, Fence(path), set())
        first = next(found, None)
        if first is None:
            raise UserError(f"{path}: the folder holds no image or video; their names end in {_suffixes()}")
        yield from chain([first], found)
    else:
        yield _of_file(path)


def _of_pattern(path: Path, text: str) -> _Items:
    if not re.search(r"[*?[]", text):
        raise UserError(f"{text!r}: there is no such file or folder; check the path")
    # Folders that exist are no part of the pattern, whatever their names: "photos [2024]/*.jpg".
    base, parts = Path(path.anchor), path.relative_to(path.anchor).parts
    while len(parts) > 1 and (base / parts[0]).is_dir():
        base, parts = base / parts[0], parts[1:]
    try:
        # pathlib's `**` follows no links between folders, which may lead in circles.
        matches = sorted(set(base.glob("/".join(parts))))
    except (ValueError, NotImplementedError, OSError) as error:
        raise UserError(f"{text}: this is no pattern ({error}); give one such as 'photos/**/*.jpg'") from None
    found = [match for match in matches if _is_wanted(match.relative_to(base)) and not is_folder(match)]
    if not found:
        raise UserError(f"{text}: no image or video matches; check the pattern; their names end in {_suffixes()}")
    fence = Fence(base)
    yield from (_of_file(match) if fence.admits(match) else _outside(match) for match in found)


def _outside(path: Path) -> Still:
    error = UserError(f"{path}: {OutsideError()}; name what it leads to as a source of its own")
    return Still(str(path), partial(_raise, error))


def _of_folder(folder: Path, fence: Fence, seen: set[tuple[int, int]]) -> _Items:
    """The images and videos below a folder, as their paths are sorted; each folder once, so that links may be followed.

    A folder that cannot be read is one unreadable image, as is what lies behind a link that leads out of the fence.
    """
    try:
        status = folder.stat()
        children = sorted(folder.iterdir())
    except OSError as error:
        message = f"{folder}: the folder cannot be read ({error.strerror}); check its permissions"
        yield Still(str(folder), partial(_raise, UserError(message)))
        return
    if (status.st_dev, status.st_ino) in seen:
        return
    seen.add((status.st_dev, status.st_ino))
    for child in children:
        is_dir = is_folder(child) and not child.name.startswith(".")
        if (is_dir or _is_wanted(Path(child.name))) and not fence.admits(child):
            yield _outside(child)
        elif is_dir:
            yield from _of_folder(child, fence, seen)
        elif _is_wanted(Path(child.name)):
            yield _of_file(child)


def _is_wanted(path: Path) -> bool:
    """Whether what was found there is called like an image or a video, and nothing on the way to it is hidden."""
    # A hidden ._photo.jpg holds what macOS knows of photo.jpg, and no pixels.
    return path.suffix.lower() in SUFFIXES + VIDEO_SUFFIXES and not any(part.startswith(".") for part in path.parts)


def _suffixes() -> str:
    return " ".join(SUFFIXES + VIDEO_SUFFIXES)


def _of_file(path: Path) -> Still | Stream:
    if path.suffix.lower() in VIDEO_SUFFIXES:
        return Stream(str(path), partial(_read, str(path)), partial(_video_length, path), ahead=True)
    return Still(str(path), partial(_from_file, path))


def _from_file(path: Path) -> Frame:
    return Frame(decode(path), str(path))


def _from_bytes(data: bytes, name: str) -> Frame:
    try:
        return Frame(decode(data))
    except UserError as error:
        raise UserError(f"{name}: {error}") from None


# Videos and cameras


def _camera(number: int) -> Stream:
    return Stream(f"camera:{number}", partial(_read, number), lambda: None, ahead=False)


def _video_length(path: Path) -> int | None:
    try:
        return video_info(path).frames
    except UserError:  # it will be one unreadable file
        return 1


class _Capture:
    """OpenCV's `VideoCapture` that is open, or a `UserError`."""

    def __init__(self, source: str | int) -> None:
        self.name = source if isinstance(source, str) else f"camera:{source}"
        if isinstance(source, str) and not Path(source).is_file():  # opening a pipe would wait for ever
            raise UserError(f"{source}: there is no such video file; check the path")
        # Of a relative name FFmpeg takes what stands before a colon for a protocol, http and all.
        self.capture = cv2.VideoCapture(str(Path(source).absolute()) if isinstance(source, str) else source)
        if not self.capture.isOpened():
            self.close()
            remedy = "check that it is plugged in" if isinstance(source, int) else "restore the file or leave it out"
            what = "camera cannot be opened" if isinstance(source, int) else "video is damaged or of an unknown format"
            raise UserError(f"{self.name}: the {what}; {remedy}")

    @property
    def frames(self) -> int | None:
        """How many its header promises; None where it does not tell."""
        count = self.get(cv2.CAP_PROP_FRAME_COUNT)
        # Containers without a length give nonsense: negative numbers, or those beyond any video.
        return int(count) if 0 < count < 2**31 else None

    def get(self, property: int) -> float:
        return self.capture.get(property)

    def close(self) -> None:
        self.capture.release()


def _read(source: str | int) -> Generator[Frame, None, None]:
    """The frames of a video or camera, as far as OpenCV can decode them; rotation is applied by it.

    Raises `UserError`, after these, where a video's header promises more.
    """
    with closing(_Capture(source)) as video:
        promised = video.frames if video.name.lower().endswith(_COUNTED) else None
        index = 0
        while True:
            there, pixels = video.capture.read()
            if not there:
                break
            yield Frame(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB), video.name, index)
            index += 1
    if index == 0:
        raise UserError(f"{video.name}: not one frame can be read; restore it or leave it out")
    if promised and index < _WHOLE * promised:
        raise UserError(f"{video.name}: only {index} of {promised} frames can be read; restore it or leave it out")


# Pixels


def _from_array(array: np.ndarray, name: str) -> Frame:
    if array.dtype != np.uint8:
        raise UserError(
            f"{name}: the array is {array.dtype}; give uint8 in 0 … 255, as (array * 255).round().astype(np.uint8)"
        )
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4):
        remedy = " with array.transpose(1, 2, 0)" if array.ndim == 3 and array.shape[0] in (1, 3) else ""
        raise UserError(f"{name}: the array has shape {list(array.shape)}; give RGB [H, W, 3] or grey [H, W]{remedy}")
    _check_size(array.shape[0], array.shape[1], name)
    # Always a copy: whoever reads a camera into one array has the next image in it before this one is looked at.
    return Frame(np.array(np.broadcast_to(array[..., :3], (*array.shape[:2], 3)), order="C"))


def _from_tensor(tensor: Any, name: str) -> Frame:
    if tensor.ndim != 3 or tensor.shape[0] not in (1, 3):
        remedy = " with tensor.permute(2, 0, 1)" if tensor.ndim == 3 and tensor.shape[2] in (1, 3) else ""
        shape = list(tensor.shape)
        raise UserError(f"{name}: the tensor has shape {shape}; give RGB [3, H, W] or grey [1, H, W]{remedy}")
    if tensor.is_floating_point():
        values = tensor.detach().float()
        if values.numel() and not bool(((values >= 0) & (values <= 1)).all()):
            raise UserError(f"{name}: the tensor has values outside 0 … 1; give it before normalisation, or as uint8")
        tensor = (values * 255).round().byte()
    array = tensor.cpu().permute(1, 2, 0).numpy()
    return _from_array(array, name)


def _from_pil(image: Image.Image, name: str) -> Frame:
    """The pixels as `decode` gives them of a file."""
    _check_size(image.height, image.width, name)
    try:
        image.load()
        with suppress(Exception):  # damaged EXIF is common, and the image is good without it
            image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I;16"):
            return _from_array((np.asarray(image) >> 8).astype(np.uint8), name)
        if image.mode in ("I", "F"):
            raise ValueError(f"pixels of mode {image.mode} have no known range: give 8 or 16 bits")
        return _from_array(np.asarray(image.convert("RGBA" if image.mode == "P" else "RGB")), name)
    except MemoryError:
        raise
    except Exception as error:  # Pillow loads only now, and raises many kinds on damaged files
        raise UserError(f"{name}: the PIL image cannot be read ({error}); leave it out") from None


def _check_size(height: int, width: int, name: str) -> None:
    if not 1 <= height * width <= MAX_PIXELS:
        raise UserError(f"{name}: the image has {width} × {height} pixels; give at least one, at most {MAX_PIXELS}")


# Addresses


class _HttpAlone(HTTPRedirectHandler):
    """Follows redirects to http and https, and nowhere else; urllib's own would follow to ftp."""

    def redirect_request(self, request, file, code, message, headers, url):
        if urlsplit(url).scheme not in ("http", "https"):
            raise HTTPError(request.full_url, code, f"redirected to {url}, which is not http", headers, file)
        return super().redirect_request(request, file, code, message, headers, url)


def _from_url(url: str, download: bool) -> Frame:
    if re.search(r"\s", url):
        raise UserError(f"{url!r}: there is a blank in the address; write it as %20")
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise UserError(f"{url}: this is no address ({error}); check it") from None
    if parts.scheme not in ("http", "https"):
        raise UserError(f"{url}: only http and https are fetched; download the file and give its path")
    if Path(parts.path).suffix.lower() in VIDEO_SUFFIXES:
        raise UserError(f"{url}: videos are not fetched; download the file and give its path")
    if not download:
        raise UserError(f"{url}: nothing is fetched unless you ask; allow it with download=True (--download)")
    data = _fetch(url)
    try:
        return Frame(decode(data), url)
    except UserError as error:
        raise UserError(f"{url}: {error}") from None


def _fetch(url: str) -> bytes:
    """What the server gives, from a thread of its own: nothing else ends the wait for headers that drip."""
    late = UserError(f"{url}: not whole after {MAX_SECONDS:.0f} s; download it and give its path")
    answer: Future[bytes] = Future()

    def fetch() -> None:
        try:
            answer.set_result(_received(url, late))
        except BaseException as error:
            answer.set_exception(error)

    Thread(target=fetch, daemon=True).start()
    try:
        return answer.result(MAX_SECONDS)
    except TimeoutError:
        raise late from None


def _received(url: str, late: UserError) -> bytes:
    deadline = time.monotonic() + MAX_SECONDS
    request, data = Request(url, headers={"User-Agent": "detect"}), bytearray()
    try:
        with build_opener(_HttpAlone).open(request, timeout=TIMEOUT) as response:
            # read1 returns what has come; read would wait on until its piece is whole.
            while piece := response.read1(2**16):
                data += piece
                if len(data) > MAX_DOWNLOAD:
                    raise UserError(f"{url}: more than {MAX_DOWNLOAD >> 20} MiB; download it and give its path")
                if time.monotonic() > deadline:
                    raise late
            missing = response.length or 0  # read1 takes an end that comes too early for an end
    except HTTPError as error:
        error.close()
        reason = " ".join(str(error.reason).split())
        raise UserError(f"{url}: the server answers {error.code} {reason}; check the address") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = " ".join(str(getattr(error, "reason", "") or error or type(error).__name__).split())
        raise UserError(f"{url}: it cannot be fetched ({reason}); check the address and the network") from None
    if missing:
        raise UserError(f"{url}: the transfer ended {missing} bytes early; try again")
    return bytes(data)
