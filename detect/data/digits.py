"""Scikit-learn's handwritten digits: 1,797 images of 8 × 8 pixels that need no download.

They are the test part of UCI's "Optical recognition of handwritten digits" (Alpaydin and Kaynak 1998): bitmaps of
32 × 32, of which each 4 × 4 pixels were counted, 0 … 16. A fifth of them, 360, is the split `test` here, with the same
share of each digit; the same people wrote both splits.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from detect.data.formats.imagefolder import ImageClasses, labels_of
from detect.errors import UserError

ROOT = "scikit-learn's digits"
SPLITS = ("train", "test")


def read_digits(split: str, classes: Sequence[str] | None = None) -> ImageClasses:
    """The split `train` (1,437) or `test` (360) as grey RGB images of 8 × 8 in the set's order.

    `classes` are as for `read_imagefolder`. Raises `UserError` for another split and for classes that are no digits.
    """
    if split not in SPLITS:
        raise UserError(
            f"{ROOT}: there is no split {split} but {' and '.join(SPLITS)}; name one of these, or null for none"
        )
    counts, digits = load_digits(return_X_y=True)
    parts = train_test_split(np.arange(len(digits)), test_size=0.2, stratify=digits, random_state=0)
    chosen = np.sort(parts[SPLITS.index(split)])
    names = tuple(map(str, range(10)))
    pixels = np.round(counts[chosen].reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    return ImageClasses(
        root=ROOT,
        split=split,
        classes=names if classes is None else tuple(classes),
        images=pixels.repeat(3, axis=-1),
        labels=labels_of(names, names if classes is None else classes, ROOT)[digits[chosen]],
    )
