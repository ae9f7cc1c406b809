"""Images with ground truths and detections side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from detect.data.dataset import Dataset
from detect.data.decode import decode
from detect.data.masks import Mask, bounds
from detect.data.records import Record
from detect.evaluation.coco import Prediction, by_image
from detect.report.drawing import BLACK, WHITE, Window, draw_boxes, font_for, text_size


def draw_pair(
    image: UInt8[np.ndarray, "H W 3"],
    record: Record,
    prediction: Prediction,
    classes: Sequence[str],
    *,
    score_threshold: float = 0.5,
) -> UInt8[np.ndarray, "H2 W2 3"]:
    """Draw the ground truths on the left and the detections on the right, with titles.

    Small images are enlarged two or three times, so that lines and text are fine; large ones are shrunk to 1600 pixels.
    For an image more than twice as wide as high, the detections are below the ground truths.

    Args:
        image: RGB pixels of the record.
        record: ground truths.
        prediction: detections.
        classes: class names by label.
        score_threshold: lowest score of the detections to draw.
    """
    height, width = image.shape[:2]
    scale = _scale(max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    scaled = np.array(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)) if scale != 1 else image

    names = _ground_truth_names(record, classes)
    left = draw_boxes(scaled, record.boxes * scale, record.labels, names, _windows(record.masks, record, size))

    shown = np.flatnonzero(prediction.scores >= prediction.scores.dtype.type(score_threshold))
    shown = shown[np.argsort(-prediction.scores[shown], kind="stable")]
    labels, scores = prediction.labels[shown], prediction.scores[shown]
    names = [f"{classes[label]} {score:.2f}" for label, score in zip(labels, scores, strict=True)]
    masks = None if prediction.masks is None else [prediction.masks[row] for row in shown]
    right = draw_boxes(scaled, prediction.boxes[shown] * scale, labels, names, _windows(masks, record, size))

    threshold = f"score >= {score_threshold:g}"  # the font has no ≥
    detected = f"detections, {threshold}: {len(shown)}" if len(shown) else f"no detections, {threshold}"
    titles = f"ground truth: {len(record.labels)}", detected
    return _side_by_side(left, right, titles)


def write_pictures(
    out: Path, dataset: Dataset, predictions: Sequence[Prediction], count: int = 12, score_threshold: float = 0.5
) -> list[Path]:
    """Write `draw_pair` of `count` images, evenly spaced over the data set, as JPEGs to the folder `out`.

    Args:
        out: folder, created if missing.
        dataset: images and ground truths.
        predictions: at most one per image.
        count: number of images.
        score_threshold: lowest score of the detections to draw.

    Returns:
        The files in the order of the data set, named like their images; the id is added to names that occur twice.

    Raises:
        UserError: an image cannot be read.
        ValueError: an image is not in the data set, or was predicted twice.
    """
    predicted = by_image(predictions, dataset)
    chosen = np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(int)
    records = [dataset.records[index] for index in chosen]
    stems = Counter(record.path.stem.lower() for record in records)
    out.mkdir(parents=True, exist_ok=True)
    paths = []
    for record in records:
        prediction = predicted.get(record.id, Prediction.empty(record.id))
        pair = draw_pair(decode(record.path), record, prediction, dataset.classes, score_threshold=score_threshold)
        stem = record.path.stem
        paths.append(out / f"{stem if stems[stem.lower()] == 1 else f'{stem}_{record.id}'}.jpg")
        # Colour at full resolution (4:4:4), which keeps thin coloured lines sharp.
        Image.fromarray(pair).save(paths[-1], quality=90, subsampling=0)
    return paths


def _scale(longest: int) -> float:
    return min(3, round(1000 / longest)) if longest <= 1000 else min(1, 1600 / longest)


def _windows(masks: Sequence[Mask | None] | None, record: Record, size: tuple[int, int]) -> list[Window] | None:
    """Return the masks in an image of this width and height; empty ones for objects without a mask."""
    if masks is None:
        return None
    windows: list[Window] = []
    for mask in masks:
        bitmap = np.zeros((record.height, record.width), np.uint8)
        bitmap = bitmap if mask is None else mask.bitmap(record.height, record.width)
        scaled = cv2.resize(bitmap, size, interpolation=cv2.INTER_NEAREST)
        left, top, right, bottom = bounds(scaled) or (0, 0, 0, 0)
        windows.append((scaled[top:bottom, left:right], left, top))
    return windows


def _ground_truth_names(record: Record, classes: Sequence[str]) -> list[str]:
    marks = ("", " (difficult)", " (crowd)", " (crowd)")
    columns = (record.labels, record.crowd, record.difficult)
    return [
        classes[label] + marks[2 * crowd + difficult]
        for label, crowd, difficult in zip(*(column.tolist() for column in columns), strict=True)
    ]


def _side_by_side(
    left: UInt8[np.ndarray, "H W 3"], right: UInt8[np.ndarray, "H W 3"], titles: tuple[str, str]
) -> UInt8[np.ndarray, "H2 W2 3"]:
    height, width = left.shape[:2]
    font = font_for((width, height))
    gap = max(4, max(width, height) // 100)
    head = 2 * text_size("", font)[1]
    panel = max(width, *(text_size(title, font)[0] + 2 for title in titles)), head + height
    step = (0, panel[1] + gap) if width > 2 * height else (panel[0] + gap, 0)
    canvas = Image.new("RGB", (panel[0] + step[0], panel[1] + step[1]), WHITE)
    for (x, y), image, title in (((0, 0), left, titles[0]), (step, right, titles[1])):
        canvas.paste(Image.fromarray(image), (x, y + head))
        ImageDraw.Draw(canvas).text((x + 4, y + head // 2), title, fill=BLACK, font=font, anchor="lm")
    return np.array(canvas)
