"""Pictures of truths and detections side by side, for people to look at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from detect.data.dataset import Dataset, Record
from detect.data.decode import decode
from detect.evaluation.coco import Prediction, by_image
from detect.report.drawing import BLACK, WHITE, draw_boxes, font_for, text_size


def draw_pair(
    image: UInt8[np.ndarray, "H W 3"],
    record: Record,
    prediction: Prediction,
    classes: Sequence[str],
    *,
    score: float = 0.5,
) -> UInt8[np.ndarray, "H2 W2 3"]:
    """The truths on the left and the detections of at least `score` on the right, under a line that says so.

    Small images are drawn two or three times as large, so that lines and names stay fine; large ones are reduced to
    1600 pixels. Of an image twice as wide as high, the detections are below the truths.

    Args:
        image: the RGB pixels of the record.
        classes: the name of each label.
    """
    height, width = image.shape[:2]
    scale = _scale(max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    drawn_on = np.array(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)) if scale != 1 else image

    left = draw_boxes(drawn_on, record.boxes * scale, record.labels, _truth_names(record, classes))

    shown = np.flatnonzero(prediction.scores >= score)
    shown = shown[np.argsort(-prediction.scores[shown], kind="stable")]
    labels, scores = prediction.labels[shown], prediction.scores[shown]
    names = [f"{classes[label]} {value:.2f}" for label, value in zip(labels, scores, strict=True)]
    right = draw_boxes(drawn_on, prediction.boxes[shown] * scale, labels, names)

    titles = f"truths: {len(record.labels)}", f"detections of score {score:g} and more: {len(shown)}"
    return _side_by_side(left, right, titles)


def write_pictures(
    out: Path, dataset: Dataset, predictions: Sequence[Prediction], count: int = 12, score: float = 0.5
) -> list[Path]:
    """Writes `draw_pair` of `count` images, evenly spaced over the data set, as JPEGs into the folder `out`.

    Each file bears its image's name, and its id where two have the same. Returns the files in the data set's order.

    Raises:
        UserError: an image cannot be read.
        ValueError: an unknown image, or one that was predicted twice.
    """
    found = by_image(predictions, dataset)
    nothing = Prediction(-1, np.empty((0, 4), np.float32), np.empty(0, np.float32), np.empty(0, np.int64))
    chosen = np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(int)
    records = [dataset.records[place] for place in chosen]
    stems = Counter(record.path.stem.lower() for record in records)
    out.mkdir(parents=True, exist_ok=True)
    paths = []
    for record in records:
        pair = draw_pair(decode(record.path), record, found.get(record.id, nothing), dataset.classes, score=score)
        stem = record.path.stem
        paths.append(out / f"{stem if stems[stem.lower()] == 1 else f'{stem}_{record.id}'}.jpg")
        # Full resolution of the colours (4:4:4) keeps thin coloured lines sharp.
        Image.fromarray(pair).save(paths[-1], quality=90, subsampling=0)
    return paths


def _scale(longest: int) -> float:
    return min(3, round(1000 / longest)) if longest <= 1000 else min(1, 1600 / longest)


def _truth_names(record: Record, classes: Sequence[str]) -> list[str]:
    marks = ("", " (difficult)", " (crowd)", " (crowd)")
    return [
        classes[label] + marks[2 * crowd + difficult]
        for label, crowd, difficult in zip(
            record.labels.tolist(), record.crowd.tolist(), record.difficult.tolist(), strict=True
        )
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
    sheet = Image.new("RGB", (panel[0] + step[0], panel[1] + step[1]), WHITE)
    for (x, y), picture, title in (((0, 0), left, titles[0]), (step, right, titles[1])):
        sheet.paste(Image.fromarray(picture), (x, y + head))
        ImageDraw.Draw(sheet).text((x + 4, y + head // 2), title, fill=BLACK, font=font, anchor="lm")
    return np.array(sheet)
