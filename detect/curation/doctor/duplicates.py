"""Images that are there twice: the same pixels, or nearly the same picture.

Nearly the same means: the 64 bits of their difference hashes (Krawetz 2013, "Kind of like that") differ in few places,
which is quickly asked of all pairs, and their grey pictures of 32 × 32 pixels, brought to mean 0 and variance 1,
correlate, which is asked of the few pairs that are left. Pictures saved anew, resized or made a little brighter are
found; crops, mirror images and quarter turns are not.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float32, UInt8, UInt64

from detect.curation.doctor.image_checks import Look

HASH_DISTANCE = 10
"""Bits. Two frames a moment apart differ in fewer, two photographs of different things in 32 on average."""
CORRELATION = 0.97
"""From here on two pictures are nearly the same: of 4.5 million pairs of photographs of VOC 2007 one is, a scene taken
twice, and of BCCD's 66,000 one, a smear at two focal planes. At 0.96 and 16 bits comes the first false alarm."""
FLAT = 4.0
"""Grey levels. Pictures of a smaller standard deviation show nothing by which they could be told apart."""
_ASPECT = 0.05  # how much the ratio of width to height may differ
_ROWS = 256  # images that are compared with all others at once
MOST_PAIRS = 100_000
"""Of a film, every frame is like many: more pairs than these nobody looks at."""

Membership = Mapping[Path, Set[str]]
"""The splits that list each image."""


class Pair(NamedTuple):
    """Two images that are the same or nearly so; the same one twice where two splits list one file."""

    first: Path
    second: Path
    correlation: float
    """1 for the same pixels."""


def exact(looks: Sequence[Look]) -> list[list[Path]]:
    """The groups of two or more images with the same pixels, in the order of `looks`."""
    groups: dict[bytes, list[Path]] = defaultdict(list)
    for look in looks:
        if look.digest:
            groups[look.digest].append(look.path)
    return [group for group in groups.values() if len(group) > 1]


def near(looks: Sequence[Look]) -> list[Pair]:
    """The pairs of images that are nearly the same but not the same, the most alike first."""
    unique = {look.digest: look for look in reversed(looks) if look.grey is not None}
    kept = [look for look in reversed(unique.values()) if look.grey is not None and look.grey.std() >= FLAT]
    if len(kept) < 2:
        return []
    grey = np.stack([look.grey for look in kept if look.grey is not None])
    hashes, pictures = difference_hashes(grey), standardised(grey)
    aspects = np.log([look.size[0] / look.size[1] for look in kept])
    pairs: list[Pair] = []
    for a, b in _candidates(hashes):
        alike = (pictures[a] * pictures[b]).sum(axis=1)
        good = (alike >= CORRELATION) & (np.abs(aspects[a] - aspects[b]) <= _ASPECT)
        pairs += [
            Pair(kept[i].path, kept[j].path, float(r)) for i, j, r in zip(a[good], b[good], alike[good], strict=True)
        ]
        if len(pairs) >= MOST_PAIRS:
            break
    return sorted(pairs, key=lambda pair: -pair.correlation)[:MOST_PAIRS]


def difference_hashes(grey: UInt8[np.ndarray, "n h w"]) -> UInt64[np.ndarray, " n"]:
    """Whether each of 8 × 8 places is brighter than the one to its left: 64 bits a picture."""
    small = np.stack([cv2.resize(picture, (9, 8), interpolation=cv2.INTER_AREA) for picture in grey])
    return np.packbits((small[:, :, 1:] > small[:, :, :-1]).reshape(len(grey), 64), axis=1).view(np.uint64)[:, 0]


def standardised(grey: UInt8[np.ndarray, "n h w"]) -> Float32[np.ndarray, "n p"]:
    """The pictures as vectors of mean 0 and length 1, whose product is their correlation."""
    flat = grey.reshape(len(grey), -1).astype(np.float32)
    flat -= flat.mean(axis=1, keepdims=True)
    return flat / np.linalg.norm(flat, axis=1, keepdims=True)


def _candidates(hashes: UInt64[np.ndarray, " n"]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The places of all pairs whose hashes are close, the smaller place first, a block of rows at a time."""
    for start in range(0, len(hashes), _ROWS):
        distance = np.bitwise_count(hashes[start : start + _ROWS, None] ^ hashes[None, start:])
        a, b = np.nonzero(distance <= HASH_DISTANCE)
        later = a < b
        yield a[later] + start, b[later] + start


def unions(lists: Mapping[str, Set[Path]]) -> set[str]:
    """The splits that are made of others, as VOC's `trainval` is of `train` and `val`: they share images by design."""
    found = set()
    for name, own in lists.items():
        parts = [other for key, other in lists.items() if key != name and other < own]
        if name == "trainval" or (len(parts) > 1 and set().union(*parts) == own):
            found.add(name)
    return found


def leaks(first: Set[str], second: Set[str], whole: Set[str], lists: Mapping[str, Set[Path]]) -> tuple[str, str] | None:
    """A split of the first image and another one of the second that should share none; None where there is none.

    `whole` are the unions: one of these may share with its parts.
    """
    for a in sorted(first):
        for b in sorted(second):
            by_design = (a in whole and lists[b] <= lists[a]) or (b in whole and lists[a] <= lists[b])
            if a != b and not by_design:
                return a, b
    return None
