"""Search for duplicate images: the same pixels, or nearly the same picture.

Two pictures are nearly the same if the 64 bits of their difference hashes (Krawetz 2013, "Kind of like that") differ in
few places, which is fast to test for all pairs, and if their grey thumbnails of 32 × 32 pixels, normalised to mean 0
and variance 1, correlate, which is tested for the few remaining pairs. This finds pictures that were compressed again,
resized or made slightly brighter, but not crops, mirror images or rotations by 90°.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float32, UInt8, UInt64

from detect.curation.doctor.image_checks import ImageCheck

HASH_DISTANCE = 10
"""Bits. Consecutive video frames differ in fewer bits, photographs of different scenes in 32 on average."""
CORRELATION = 0.97
"""Minimum correlation of nearly equal pictures. It selects one of 4.5 million pairs of photographs in VOC 2007, a
scene taken twice, and one of 66,000 pairs in BCCD, a smear at two focal planes. The first false alarm occurs at 0.96
and 16 bits."""
FLAT = 4.0
"""Grey levels. Pictures with a smaller standard deviation cannot be distinguished."""
_ASPECT = 0.05  # maximum difference of the logarithms of the aspect ratios
_ROWS = 256  # number of images that are compared with all others at a time
MAX_PAIRS = 100_000
"""Maximum number of reported pairs, for videos, in which every frame resembles many others."""


class Pair(NamedTuple):
    """Two images that are equal or nearly equal; the same image twice if two splits list one file."""

    first: Path
    second: Path
    correlation: float
    """1 for the same pixels."""


def exact(images: Sequence[ImageCheck]) -> list[list[Path]]:
    """Return the groups of two or more images with the same pixels, in the order of `images`."""
    groups: dict[bytes, list[Path]] = defaultdict(list)
    for image in images:
        if image.digest:
            groups[image.digest].append(image.path)
    return [group for group in groups.values() if len(group) > 1]


def near(images: Sequence[ImageCheck]) -> list[Pair]:
    """Return the pairs of images that are nearly but not exactly the same, by descending correlation."""
    unique = {image.digest: image for image in reversed(images) if image.grey is not None}
    kept = [image for image in reversed(unique.values()) if image.grey is not None and image.grey.std() >= FLAT]
    if len(kept) < 2:
        return []
    grey = np.stack([image.grey for image in kept if image.grey is not None])
    hashes, pictures = difference_hashes(grey), standardised(grey)
    aspects = np.log([image.size[0] / image.size[1] for image in kept])
    pairs: list[Pair] = []
    for a, b in _candidates(hashes):
        correlation = (pictures[a] * pictures[b]).sum(axis=1)
        good = (correlation >= CORRELATION) & (np.abs(aspects[a] - aspects[b]) <= _ASPECT)
        chosen = zip(a[good], b[good], correlation[good], strict=True)
        pairs += [Pair(kept[i].path, kept[j].path, float(r)) for i, j, r in chosen]
        if len(pairs) >= MAX_PAIRS:
            break
    return sorted(pairs, key=lambda pair: -pair.correlation)[:MAX_PAIRS]


def difference_hashes(grey: UInt8[np.ndarray, "n h w"]) -> UInt64[np.ndarray, " n"]:
    """Return 64 bits per picture, one for each of 8 × 8 cells: 1 if it is brighter than the cell to its left."""
    small = np.stack([cv2.resize(picture, (9, 8), interpolation=cv2.INTER_AREA) for picture in grey])
    return np.packbits((small[:, :, 1:] > small[:, :, :-1]).reshape(len(grey), 64), axis=1).view(np.uint64)[:, 0]


def standardised(grey: UInt8[np.ndarray, "n h w"]) -> Float32[np.ndarray, "n p"]:
    """Return the pictures as vectors of mean 0 and length 1, whose dot product is their correlation."""
    flat = grey.reshape(len(grey), -1).astype(np.float32)
    flat -= flat.mean(axis=1, keepdims=True)
    return flat / np.linalg.norm(flat, axis=1, keepdims=True)


def _candidates(hashes: UInt64[np.ndarray, " n"]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the indices of all pairs with similar hashes, the smaller index first, one block of rows at a time."""
    for start in range(0, len(hashes), _ROWS):
        distance = np.bitwise_count(hashes[start : start + _ROWS, None] ^ hashes[None, start:])
        a, b = np.nonzero(distance <= HASH_DISTANCE)
        later = a < b
        yield a[later] + start, b[later] + start


def unions(lists: Mapping[str, Set[Path]]) -> set[str]:
    """Return the splits that are unions of others, such as VOC's `trainval`, and share images by design."""
    result = set()
    for name, images in lists.items():
        parts = [other for key, other in lists.items() if key != name and other < images]
        if name == "trainval" or (len(parts) > 1 and set().union(*parts) == images):
            result.add(name)
    return result


def leaks(first: Set[str], second: Set[str], union: Set[str], lists: Mapping[str, Set[Path]]) -> tuple[str, str] | None:
    """Return two splits that share a picture but should not, or None.

    Args:
        first: splits of the first image.
        second: splits of the second image.
        union: splits that are unions of others, and may share images with their parts.
        lists: the images of each split.
    """
    for a in sorted(first):
        for b in sorted(second):
            by_design = (a in union and lists[b] <= lists[a]) or (b in union and lists[a] <= lists[b])
            if a != b and not by_design:
                return a, b
    return None
