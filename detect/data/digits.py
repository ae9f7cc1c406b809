"""Handwritten digits of scikit-learn: 1,797 images of 8 × 8 pixels that need no download.

They are the test set of UCI's "Optical recognition of handwritten digits" (Alpaydin and Kaynak 1998): bitmaps of
32 × 32 pixels, reduced to the counts, 0 … 16, in blocks of 4 × 4. A fifth of them, 360, is the split `test` here,
stratified by digit; the same people wrote both splits.
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
    """Return the split `train` (1,437 images) or `test` (360) as grey RGB images of 8 × 8 pixels, in their order.

    Args:
        split: `train` or `test`.
        classes: classes of a trained model; see `read_imagefolder`.

    Raises:
        UserError: the split does not exist, or a digit is missing from `classes`.
    """
    if split not in SPLITS:
        raise UserError(f"{ROOT}: there is no split {split}; name one of {', '.join(SPLITS)}, or null for none")
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
