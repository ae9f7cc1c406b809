"""Pictures of the matched masks with the worst boundaries; missed and extra pixels have a colour each."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from detect.data.decode import decode
from detect.data.masks import Bitmap, bounds
from detect.errors import UserError
from detect.evaluation.boundary import MaskPair

MAX_PAIRS = 24
MAX_PER_IMAGE = 2
"""Maximum number of pairs of one image, so that a bad one does not fill the page."""
MISSED, EXTRA, OUTLINE = (240, 228, 66), (213, 94, 0), (86, 180, 233)
"""Colours of missed ground truths, wrong detections and ground truths, as on the other pictures of the page."""
_OPACITY = 0.65
_SIDE = 320
"""Longest side of a picture in pixels."""
_MAX_ZOOM = 4
_GREY = 128
"""Value of the pixels of an image that cannot be read."""


def worst_boundaries(pairs: Sequence[MaskPair], classes: Sequence[str]) -> list[dict[str, Any]]:
    """Return the `MAX_PAIRS` pairs with the lowest Boundary IoU, at most `MAX_PER_IMAGE` of each image, as pictures."""
    chosen: list[MaskPair] = []
    of_image: Counter[int] = Counter()
    for pair in sorted(pairs, key=lambda pair: pair.boundary_iou):
        if len(chosen) < MAX_PAIRS and of_image[pair.record.id] < MAX_PER_IMAGE:
            chosen.append(pair)
            of_image[pair.record.id] += 1
    return [_entry(pair, classes) for pair in chosen]


def _entry(pair: MaskPair, classes: Sequence[str]) -> dict[str, Any]:
    record, prediction = pair.record, pair.prediction
    assert record.masks is not None and prediction.masks is not None
    truth = record.masks[pair.ground_truth]
    assert truth is not None
    size = record.height, record.width
    bitmaps = truth.bitmap(*size), prediction.masks[pair.detection].bitmap(*size)
    try:
        image = decode(record.path)
        if image.shape[:2] != size:
            image = cv2.resize(image, (record.width, record.height), interpolation=cv2.INTER_AREA)
    except UserError:
        image = np.full((*size, 3), _GREY, np.uint8)
    with io.BytesIO() as file:
        Image.fromarray(draw_difference(image, *bitmaps)).save(file, "JPEG", quality=85, subsampling=0)
        picture = base64.b64encode(file.getvalue()).decode()
    return {
        "name": record.path.name,
        "class": classes[prediction.labels[pair.detection]],
        "score": round(float(prediction.scores[pair.detection]), 4),
        "iou": pair.iou,
        "boundary_iou": pair.boundary_iou,
        "missed": int((bitmaps[0] > bitmaps[1]).sum()),
        "extra": int((bitmaps[1] > bitmaps[0]).sum()),
        "picture": f"data:image/jpeg;base64,{picture}",
    }


def draw_difference(image: UInt8[np.ndarray, "h w 3"], truth: Bitmap, detected: Bitmap) -> UInt8[np.ndarray, "H W 3"]:
    """Return the part of an image around two masks, with missed and extra pixels and the outline of the ground truth.

    Args:
        image: RGB.
        truth: mask of the ground truth.
        detected: mask of the detection. One of both has a pixel.
    """
    extent = bounds(truth | detected)
    assert extent is not None
    left, top, right, bottom = extent
    margin = max(4, (right - left) // 8, (bottom - top) // 8)
    window = slice(max(0, top - margin), bottom + margin), slice(max(0, left - margin), right + margin)
    height, width = truth[window].shape
    scale = min(_MAX_ZOOM, _SIDE / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    canvas = np.array(Image.fromarray(image[window]).resize(size, Image.Resampling.BICUBIC))
    truth, detected = (cv2.resize(mask[window], size, interpolation=cv2.INTER_NEAREST) for mask in (truth, detected))
    for pixels, colour in ((truth > detected, MISSED), (detected > truth, EXTRA)):
        canvas[pixels] = np.rint(canvas[pixels] + _OPACITY * (np.array(colour) - canvas[pixels])).astype(np.uint8)
    outlines, _ = cv2.findContours(truth, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(canvas, outlines, -1, OUTLINE, 1)
    return canvas
