"""Selective search: region proposals by hierarchical grouping (Uijlings et al., IJCV 2013).

The image is segmented into small regions. The two most similar neighbours are merged repeatedly until one region is
left; the box of every initial and merged region is a proposal. This is repeated for several colour spaces, initial
segmentations and similarities, 8 or 80 strategies in total, and all boxes are ranked together.

    image ─ colour space ─┬─ edges  ─┬─ k ─ regions ─┬─ CTSF ─ boxes
                          └─ slopes  ┊               └─ TSF  ─ boxes
                                     └─ k …

Choices that the paper leaves open, and deviations from it:

- The paper does not state the minimum size of a region (k pixels) and the minimum side of a box (20); both are taken
  from the authors' release. So are 8 bits per channel, and the segmentation of a single channel as three equal ones.
- Hue runs from 0 to 255 and is not treated as circular: 0 and 255 have the largest distance.
- Edge weights are rounded to 1/128 of a grey level (`graph_segmentation.py`).
- Gaussian derivatives are computed in four directions, and their two signs give eight orientations. The ten bins of a
  histogram range from no slope to the slope of an ideal step of 255 levels.
- Regions are neighbours if two of their pixels share a side.
- The colour space C, which no mode uses, is missing.

Memory, measured on photographs: with one thread 110 bytes per pixel in every mode (160 on pure noise); with more
threads 185 in fast mode and 300 in quality mode, because all colour spaces are held at once.
"""

from __future__ import annotations

import functools
import math
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, NamedTuple, get_args

import cv2
import numpy as np
from jaxtyping import Float32, Int32, UInt8, UInt16, UInt32

from detect.cores import available_cores
from detect.errors import UserError
from detect.proposals.graph_segmentation import Edges, compute_edges, segment
from detect.proposals.grouping import describe, group, slope_codes

Mode = Literal["single", "fast", "quality"]
ColourSpace = Literal["HSV", "Lab", "rgI", "H", "I", "RGB", "rgb"]

MAX_PIXELS = 2**25
"""Maximum number of pixels of an image: 34 million. Larger images are refused to limit memory."""

MAX_SIDE = 2**16 - 1  # the four coordinates of a box, 16 bits each, form one 64-bit key


class Strategies(NamedTuple):
    """All combinations of colour spaces, k and similarities."""

    colour_spaces: tuple[ColourSpace, ...]
    k: tuple[float, ...]
    similarities: tuple[str, ...]


REVISION = 1
"""Incremented when the code computes other boxes for an image; recorded in proposal stores."""

MODES: dict[Mode, Strategies] = {
    "single": Strategies(("HSV",), (100,), ("CTSF",)),
    "fast": Strategies(("HSV", "Lab"), (50, 100), ("CTSF", "TSF")),
    "quality": Strategies(("HSV", "Lab", "rgI", "H", "I"), (50, 100, 150, 300), ("CTSF", "TSF", "F", "S")),
}
"""Table 5 of the paper: 1, 8 and 80 strategies."""


def selective_search(
    image: np.ndarray,
    mode: Mode = "fast",
    *,
    colour_spaces: Sequence[ColourSpace] | None = None,
    k: Sequence[float] | None = None,
    similarities: Sequence[str] | None = None,
    min_size: int | None = None,
    sigma: float = 0.8,
    colour_bins: int = 25,
    texture_sigma: float = 1.0,
    texture_bins: int = 10,
    min_side: float = 20,
    seed: int = 0,
    threads: int | None = None,
) -> Float32[np.ndarray, "n 4"]:
    """Return region proposals of an image: boxes xyxy in pixels, best first, without duplicates.

    The rank of a box is its position from the end of its hierarchy, where the whole image is first, times a random
    number in 0 … 1; a box that occurs more than once keeps its best rank (§3.3). The same image, arguments and versions
    give bitwise equal boxes on one kind of CPU, for any number of threads.

    Args:
        image: RGB [H, W, 3] or grey [H, W], uint8.
        mode: "single", "fast" (8 strategies) or "quality" (80); sets the defaults of the next three arguments.
        colour_spaces: colour spaces for segmentation and comparison of regions: HSV, Lab, rgI, H, I, RGB and rgb.
        k: scales of the initial segmentation, in grey levels times pixels; a larger k makes larger regions.
        similarities: strings of the terms to sum: C(olour), T(exture), S(ize), F(ill).
        min_size: minimum number of pixels of an initial region; by default the k of the segmentation.
        sigma: standard deviation in pixels of the Gaussian smoothing before the segmentation; 0 for none.
        colour_bins: bins of the colour histogram of a channel.
        texture_sigma: standard deviation of the Gaussian derivatives, in pixels.
        texture_bins: bins of the texture histogram of a channel and orientation.
        min_side: drop boxes with a shorter side, in pixels.
        seed: seed of the random numbers in the ranks.
        threads: number of threads; by default one per available core.

    Raises:
        UserError: the image has another type or shape, is empty or too large, or an argument is out of range.
    """
    image = _checked_image(image)
    strategies = _choose_strategies(mode, colour_spaces, k, similarities)
    search = _Search(strategies, min_size, sigma, colour_bins, texture_sigma, texture_bins)
    search.check()
    if not min_side >= 0 or seed < 0:
        raise UserError(f"selective search: min_side is {min_side} and seed {seed}; neither may be below 0")
    if threads is not None and threads < 1:
        raise UserError(f"selective search: threads is {threads}; give 1 or more")
    _compile()
    return _ranked(search.hierarchies(image, threads or available_cores()), min_side, seed)


def _choose_strategies(
    mode: Mode,
    colour_spaces: Sequence[ColourSpace] | None,
    k: Sequence[float] | None,
    similarities: Sequence[str] | None,
) -> Strategies:
    """Return the strategies of a mode; given parts replace the mode's."""
    if mode not in MODES:
        raise UserError(f"selective search: mode {mode!r}; choose from {', '.join(MODES)}")
    default = MODES[mode]
    return Strategies(
        default.colour_spaces if colour_spaces is None else tuple(colour_spaces),
        default.k if k is None else tuple(k),
        default.similarities if similarities is None else tuple(similarities),
    )


def _checked_image(image: np.ndarray) -> np.ndarray:
    """Return the image as a contiguous RGB array."""
    remedy = "give RGB [H, W, 3] or grey [H, W] as a NumPy array of uint8"
    if not isinstance(image, np.ndarray):
        raise UserError(f"selective search: the image is a {type(image).__name__}; {remedy}")
    if image.dtype != np.uint8 or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)):
        raise UserError(f"selective search: the image is {image.dtype} of shape {list(image.shape)}; {remedy}")
    height, width = image.shape[:2]
    if not height * width:
        raise UserError(f"selective search: the image has {width}×{height} pixels; {remedy}")
    if height * width > MAX_PIXELS or max(height, width) > MAX_SIDE:
        raise UserError(
            f"selective search: the image has {width}×{height} pixels; shrink it to {MAX_PIXELS} pixels"
            f" and sides of at most {MAX_SIDE}, and scale the boxes back"
        )
    return cv2.cvtColor(image, cv2.COLOR_GRAY2RGB) if image.ndim == 2 else np.ascontiguousarray(image)


class _Space(NamedTuple):
    """Image in a colour space, with data for segmentations with any k."""

    channels: UInt8[np.ndarray, "C H W"]
    edges: Edges
    slopes: tuple[UInt32[np.ndarray, " m"], UInt16[np.ndarray, " m"]]


class _Search(NamedTuple):
    strategies: Strategies
    min_size: int | None
    sigma: float
    colour_bins: int
    texture_sigma: float
    texture_bins: int

    def check(self) -> None:
        spaces, ks, similarities = self.strategies
        if not spaces or not set(spaces) <= set(get_args(ColourSpace)):
            raise UserError(f"selective search: colour_spaces {spaces}; choose from {', '.join(get_args(ColourSpace))}")
        if not ks or not all(0 <= k < math.inf for k in ks):
            raise UserError(f"selective search: k {ks}; give numbers of at least 0")
        if not similarities or not all(term and not set(term) - set("CTSF") for term in similarities):
            raise UserError(f'selective search: similarities {similarities}; give letters of CTSF, as in ("CTSF", "S")')
        for name, minimum, maximum in (
            ("min_size", 0, math.inf),
            ("sigma", 0, 100),
            ("colour_bins", 1, 256),
            ("texture_sigma", 0.1, 100),
            ("texture_bins", 1, 256),
        ):
            value = getattr(self, name)
            if value is not None and not minimum <= value <= maximum:
                raise UserError(f"selective search: {name} is {value}; it must be in {minimum} … {maximum}")

    def hierarchies(self, image: UInt8[np.ndarray, "H W 3"], threads: int) -> list[Int32[np.ndarray, "nodes 4"]]:
        """Return the boxes of each strategy, in the order of the paper's loops: colour spaces, k, similarities."""
        spaces, ks, _ = self.strategies
        if threads == 1:
            parts = [self._group(space, k) for space in (self._prepare(image, name) for name in spaces) for k in ks]
        else:
            with ThreadPoolExecutor(threads) as pool:
                prepared = list(pool.map(functools.partial(self._prepare, image), spaces))
                parts = list(pool.map(self._group, *zip(*((space, k) for space in prepared for k in ks), strict=True)))
        return [boxes for part in parts for boxes in part]

    def _prepare(self, image: UInt8[np.ndarray, "H W 3"], space: ColourSpace) -> _Space:
        channels = _channels(image, space)
        edges = compute_edges(_smooth(channels, self.sigma))
        return _Space(channels, edges, _slopes(channels, self.texture_sigma, self.texture_bins))

    def _group(self, space: _Space, k: float) -> list[Int32[np.ndarray, "nodes 4"]]:
        labels, n = segment(space.edges, k, math.ceil(k if self.min_size is None else self.min_size))
        regions = describe(labels, n, space.channels, self.colour_bins, space.slopes, self.texture_bins)
        return [group(regions, similarity) for similarity in self.strategies.similarities]


def _channels(image: UInt8[np.ndarray, "H W 3"], space: ColourSpace) -> UInt8[np.ndarray, "C H W"]:
    """Convert an image to a colour space (§4.1), with each channel scaled to 0 … 255."""
    if space == "RGB":
        return np.stack(cv2.split(image))
    if space == "Lab":
        return np.stack(cv2.split(cv2.cvtColor(image, cv2.COLOR_RGB2Lab)))
    if space == "I":
        return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[None]
    if space in ("HSV", "H"):
        channels = cv2.split(cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL))
        return np.stack(channels[:1] if space == "H" else channels)
    planes = np.stack(cv2.split(image))
    total = np.maximum(planes.sum(axis=0, dtype=np.float32), 1)
    shares = [(plane * np.float32(255) / total).astype(np.uint8) for plane in planes]  # r, g, b: black is 0, 0, 0
    return np.stack([*shares[:2], cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)] if space == "rgI" else shares)


def _smooth(channels: UInt8[np.ndarray, "C H W"], sigma: float) -> Float32[np.ndarray, "C H W"]:
    planes = channels.astype(np.float32)
    if sigma > 0:
        side = 2 * math.ceil(4 * sigma) + 1
        for plane in planes:
            cv2.GaussianBlur(plane, (side, side), sigma, dst=plane, borderType=cv2.BORDER_REPLICATE)
    return planes


def _slopes(
    channels: UInt8[np.ndarray, "C H W"], sigma: float, bins: int
) -> tuple[UInt32[np.ndarray, " m"], UInt16[np.ndarray, " m"]]:
    """Return the steep pixels and their texture bins: channel, orientation, slope (§3.2)."""
    reach = math.ceil(3 * sigma)
    x = np.arange(-reach, reach + 1, dtype=np.float64)
    smooth = np.exp(-(x**2) / (2 * sigma**2))
    smooth /= smooth.sum()
    slope = x * smooth
    # An ideal step of 255 levels has a slope of `bins`.
    slope = slope * (bins * sigma * math.sqrt(2 * math.pi) / 255 / (slope @ x))
    pixels, codes = np.empty(4 * channels[0].size, np.uint32), np.empty(4 * channels[0].size, np.uint16)
    parts = []
    for number, plane in enumerate(channels):
        dx = cv2.sepFilter2D(plane, cv2.CV_32F, slope, smooth, borderType=cv2.BORDER_REPLICATE)
        dy = cv2.sepFilter2D(plane, cv2.CV_32F, smooth, slope, borderType=cv2.BORDER_REPLICATE)
        m = slope_codes(dx.ravel(), dy.ravel(), bins, 8 * number * bins, pixels, codes)
        parts.append((pixels[:m].copy(), codes[:m].copy()))
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def _ranked(hierarchies: Sequence[Int32[np.ndarray, "_ 4"]], min_side: float, seed: int) -> Float32[np.ndarray, "n 4"]:
    boxes = np.concatenate(hierarchies)
    from_the_end = np.concatenate([np.arange(len(hierarchy), 0, -1) for hierarchy in hierarchies])
    ranks = from_the_end * np.random.default_rng(seed).random(len(boxes))
    large = (boxes[:, 2:] - boxes[:, :2]).min(axis=1) >= min_side
    boxes = boxes[large][np.argsort(ranks[large], kind="stable")]
    _, first = np.unique(boxes.astype(np.uint16).view(np.uint64), return_index=True)
    return boxes[np.sort(first)].astype(np.float32)


@functools.cache
def _compile() -> None:
    """Compile all kernels or load them from the cache on disk, with a notice on a terminal if that takes long."""
    notice = threading.Timer(3.0, print, ["compiling selective search, once on this machine …"], {"file": sys.stderr})
    notice.daemon = True
    if sys.stderr is not None and sys.stderr.isatty():
        notice.start()
    noise = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
    _Search(Strategies(("HSV", "I"), (50,), ("CTSF", "S")), None, 0.8, 25, 1.0, 10).hierarchies(noise, 1)
    notice.cancel()
