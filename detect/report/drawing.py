"""Boxes and their names on pictures. Nothing here needs torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image, ImageDraw, ImageFont

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

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Rectangle = tuple[int, int, int, int]
"""Left, top, right, bottom in whole pixels; right and bottom are outside."""


def draw_boxes(
    image: UInt8[np.ndarray, "H W 3"],
    boxes: Float[np.ndarray, "n 4"],
    labels: Int[np.ndarray, " n"],
    texts: Sequence[str],
) -> UInt8[np.ndarray, "H W 3"]:
    """A copy of the picture with the boxes drawn in the colour of their class, and beside each its text.

    Args:
        image: RGB.
        boxes: xyxy in pixels of the image, the most important first: they are drawn last, and their texts get the best
            places.
        labels: the class of each box, which chooses the colour.
        texts: what to write at each box, such as name and score. Of a long one the start and the end are written.
    """
    canvas = Image.fromarray(image)
    pen = ImageDraw.Draw(canvas)
    side = max(canvas.size)
    font = font_for(canvas.size)
    width = max(1 if side < 200 else 2, round(side / 400))
    corners = [whole_pixels(box, canvas.size) for box in boxes]
    colours = [COLOURS[label % len(COLOURS)] for label in labels.tolist()]
    for (left, top, right, bottom), colour in reversed(list(zip(corners, colours, strict=True))):
        # Black beneath the colour makes the line stand out from any background.
        pen.rectangle((left - 1, top - 1, right, bottom), outline=BLACK, width=width + 2)
        pen.rectangle((left, top, right - 1, bottom - 1), outline=colour, width=min(width, right - left, bottom - top))
    whole, taken = np.array(corners, int).reshape(-1, 4), np.empty((len(corners), 4), int)
    for i, text in enumerate(texts):
        text = _fitting(text, font, canvas.size[0])
        taken[i] = _place(i, whole, text_size(text, font), taken[:i], canvas.size)
        _write(pen, taken[i].tolist(), text, font, colours[i])
    return np.array(canvas)


def font_for(size: tuple[int, int]) -> Font:
    """Letters to be read on a picture of this width and height."""
    side = max(size)
    return ImageFont.load_default(round(max(10, min(12, side / 16), side / 60)))


def whole_pixels(box: Float[np.ndarray, " 4"], size: tuple[int, int]) -> Rectangle:
    """The pixels within the image of this width and height that a box touches, at least one."""
    corners = []
    for low, high, end in zip(box[:2].tolist(), box[2:].tolist(), size, strict=True):
        first = int(np.clip(np.floor(low), 0, end - 1))
        corners.append((first, int(np.clip(np.ceil(high), first + 1, end))))
    (left, right), (top, bottom) = corners
    return left, top, right, bottom


def _fitting(text: str, font: Font, width: int) -> str:
    """The text; of one too long for the picture, or of more than 32 letters, the start and the end, a score's place."""
    text = " ".join(text.split())  # Pillow places no text of two lines
    most, end = min(len(text), 32), text[-5:]
    fitting = text if len(text) <= 32 else f"{text[: most - 6]}…{end}"
    while most > 6 and text_size(fitting, font)[0] > width:
        most -= 1
        fitting = f"{text[: most - 6]}…{end}"
    return fitting


def text_size(text: str, font: Font) -> tuple[int, int]:
    """Width and height of a label; the height is the same for all texts."""
    left, _, right, _ = font.getbbox(text)
    _, top, _, bottom = font.getbbox("Äg", anchor="ls")
    return round(right - left) + 6, round(bottom - top) + 4


def _place(
    i: int,
    boxes: Int[np.ndarray, "n 4"],
    text: tuple[int, int],
    taken: Int[np.ndarray, "m 4"],
    size: tuple[int, int],
) -> Int[np.ndarray, " 4"]:
    """Where the label of box `i` hides least: above the box, below it, inside at the top, inside at the bottom.

    It starts at the box's left or ends at its right. That no other label is hidden comes first; then the boxes count,
    a pixel of its own half as much as one of another.
    """
    (left, top, right, bottom), (width, height) = boxes[i].tolist(), text
    corners = [
        (max(0, min(x, size[0] - width)), y)
        for y in (top - height, bottom, top, bottom - height)
        for x in (left, right - width)
        if y >= 0 and y + height <= size[1]
    ] or [(max(0, min(left, size[0] - width)), 0)]
    places = np.array([(x, y, x + width, y + height) for x, y in corners])
    of_boxes = _common(places, boxes)
    hidden = of_boxes.sum(axis=1) - 0.5 * of_boxes[:, i]
    return places[np.lexsort((hidden, _common(places, taken).sum(axis=1)))[0]]


def _common(some: Int[np.ndarray, "p 4"], others: Int[np.ndarray, "q 4"]) -> Int[np.ndarray, "p q"]:
    """The pixels that each rectangle shares with each of the others."""
    sides = np.minimum(some[:, None, 2:], others[:, 2:]) - np.maximum(some[:, None, :2], others[:, :2])
    return np.maximum(sides, 0).prod(axis=-1)


def _write(pen: ImageDraw.ImageDraw, place: Sequence[int], text: str, font: Font, colour: tuple[int, int, int]) -> None:
    left, top, right, bottom = place
    pen.rectangle((left, top, right - 1, bottom - 1), fill=colour)
    luminance = np.dot(colour, (0.299, 0.587, 0.114))
    pen.text((left + 3, (top + bottom) / 2), text, fill=BLACK if luminance > 110 else WHITE, font=font, anchor="lm")
