"""Pictures of truths and detections side by side, for people to look at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int, UInt8
from PIL import Image, ImageDraw, ImageFont

from detect.data.dataset import Dataset, Record
from detect.data.decode import decode
from detect.evaluation.coco import Prediction, by_image

# Okabe and Ito, "Color universal design" (2008): to be told apart with any kind of colour vision.
COLOURS = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (213, 94, 0),
    (204, 121, 167),
    (0, 114, 178),
)
BLACK, WHITE = (0, 0, 0), (255, 255, 255)

Rectangle = tuple[int, int, int, int]
"""Left, top, right, bottom in whole pixels; right and bottom are outside."""


def draw_boxes(
    image: UInt8[np.ndarray, "H W 3"],
    boxes: Float32[np.ndarray, "n 4"],
    labels: Int[np.ndarray, " n"],
    names: Sequence[str],
) -> UInt8[np.ndarray, "H W 3"]:
    """A copy of the picture with the boxes drawn in the colour of their class, and beside each its name.

    Args:
        image: RGB.
        boxes: xyxy in pixels of the image, the most important first: its name gets the best place.
        labels: the class of each box, which chooses the colour.
        names: what to write at each box.
    """
    canvas = Image.fromarray(image)
    pen = ImageDraw.Draw(canvas)
    font = _font(canvas.size)
    width = max(2, round(max(canvas.size) / 400))
    corners = [_whole_pixels(box, canvas.size) for box in boxes]
    for (left, top, right, bottom), label in reversed(list(zip(corners, labels.tolist(), strict=True))):
        # Black beneath the colour makes the line stand out from any background.
        pen.rectangle((left - 1, top - 1, right, bottom), outline=BLACK, width=width + 2)
        pen.rectangle((left, top, right - 1, bottom - 1), outline=_colour(label), width=width)
    taken: list[Rectangle] = []
    for box, label, name in zip(corners, labels.tolist(), map(_shorten, names), strict=True):
        place = _place(box, _text_size(name, font), taken, canvas.size)
        _write(pen, place, name, font, _colour(label))
        taken.append(place)
    return np.array(canvas)


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
    font = _font((width, height))
    gap = max(4, max(width, height) // 100)
    head = 2 * _text_size("", font)[1]
    panel = max(width, *(_text_size(title, font)[0] + 2 for title in titles)), head + height
    step = (0, panel[1] + gap) if width > 2 * height else (panel[0] + gap, 0)
    sheet = Image.new("RGB", (panel[0] + step[0], panel[1] + step[1]), WHITE)
    for (x, y), picture, title in (((0, 0), left, titles[0]), (step, right, titles[1])):
        sheet.paste(Image.fromarray(picture), (x, y + head))
        ImageDraw.Draw(sheet).text((x + 4, y + head // 2), title, fill=BLACK, font=font, anchor="lm")
    return np.array(sheet)


def _font(size: tuple[int, int]) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(max(12, round(max(size) / 60)))


def _text_size(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> tuple[int, int]:
    """Width and height of a label; the height is the same for all texts."""
    left, _, right, _ = font.getbbox(text)
    _, top, _, bottom = font.getbbox("Äg", anchor="ls")
    return round(right - left) + 6, round(bottom - top) + 4


def _shorten(name: str, most: int = 32) -> str:
    """The start and the end of a name, where its score stands, if it is longer than `most` letters."""
    return name if len(name) <= most else f"{name[: most - 9]}…{name[-8:]}"


def _colour(label: int) -> tuple[int, int, int]:
    return COLOURS[label % len(COLOURS)]


def _whole_pixels(box: Float32[np.ndarray, " 4"], size: tuple[int, int]) -> Rectangle:
    """The box within the image, at least three pixels wide and high, so that something is seen of it."""
    corners = []
    for low, high, end in ((box[0], box[2], size[0]), (box[1], box[3], size[1])):
        first = int(np.clip(round(float(low)), 0, max(0, end - 3)))
        corners.append((first, int(np.clip(round(float(high)), first + 3, max(end, first + 3)))))
    (left, right), (top, bottom) = corners
    return left, top, right, bottom


def _place(box: Rectangle, text: tuple[int, int], taken: list[Rectangle], size: tuple[int, int]) -> Rectangle:
    """Where the name covers least of the other names: above its box, inside at the top, below, inside at the bottom."""
    (left, top, _, bottom), (width, height) = box, text
    x = max(0, min(left, size[0] - width))
    candidates = [(x, y, x + width, y + height) for y in (top - height, top, bottom, bottom - height)]
    inside = [place for place in candidates if place[1] >= 0 and place[3] <= size[1]] or [(x, 0, x + width, height)]
    return min(inside, key=lambda place: sum(_common(place, other) for other in taken))


def _common(a: Rectangle, b: Rectangle) -> int:
    return max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))


def _write(
    pen: ImageDraw.ImageDraw,
    place: Rectangle,
    text: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    colour: tuple[int, int, int],
) -> None:
    left, top, right, bottom = place
    pen.rectangle((left, top, right - 1, bottom - 1), fill=colour)
    luminance = np.dot(colour, (0.299, 0.587, 0.114))
    ink = BLACK if luminance > 110 else WHITE
    pen.text((left + 3, (top + bottom) / 2), text, fill=ink, font=font, anchor="lm")
