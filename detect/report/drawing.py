"""Drawing of masks, boxes and labels on images, without torch."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image, ImageDraw, ImageFont

# Okabe and Ito, "Color universal design" (2008): distinguishable with any kind of colour vision.
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
_MAX_LETTERS = 32
_OPACITY = 0.4
"""Part of the colour in the pixels of a mask; the rest is the image."""

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Rectangle = tuple[int, int, int, int]
"""Left, top, right, bottom in whole pixels; right and bottom are exclusive."""
Window = tuple[UInt8[np.ndarray, "_h _w"], int, int]
"""Bitmap of a mask in a part of the image, and the part's left and top, as `detect.data.masks.paste` returns them."""


def draw_boxes(
    image: UInt8[np.ndarray, "H W 3"],
    boxes: Float[np.ndarray, "n 4"],
    labels: Int[np.ndarray, " n"],
    texts: Sequence[str],
    masks: Sequence[Window] | None = None,
) -> UInt8[np.ndarray, "H W 3"]:
    """Return a copy of the image with masks and boxes in the colours of their classes, and a text at each box.

    Args:
        image: RGB.
        boxes: xyxy in pixels of the image, most important first: they are drawn on top, and their texts are placed
            first.
        labels: class of each box, which determines its colour.
        texts: text of each box, such as class name and score. The middle of long texts is left out.
        masks: mask of each box, drawn below all boxes as a translucent area with a thin contour; by default none.
    """
    colours = [COLOURS[label % len(COLOURS)] for label in labels.tolist()]
    canvas = Image.fromarray(image if masks is None else _with_masks(image, masks, colours))
    pen = ImageDraw.Draw(canvas)
    side = max(canvas.size)
    font = font_for(canvas.size)
    width = max(1 if side < 200 else 2, round(side / 400))
    corners = [whole_pixels(box, canvas.size) for box in boxes]
    for (left, top, right, bottom), colour in reversed(list(zip(corners, colours, strict=True))):
        # A black outline makes the line visible on any background.
        pen.rectangle((left - 1, top - 1, right, bottom), outline=BLACK, width=width + 2)
        pen.rectangle((left, top, right - 1, bottom - 1), outline=colour, width=min(width, right - left, bottom - top))
    rectangles, taken = np.array(corners, int).reshape(-1, 4), np.empty((len(corners), 4), int)
    for i, text in enumerate(texts):
        text = _shortened(text, font, canvas.size[0])
        taken[i] = _place(i, rectangles, text_size(text, font), taken[:i], canvas.size)
        _write(pen, taken[i].tolist(), text, font, colours[i])
    return np.array(canvas)


def _with_masks(
    image: UInt8[np.ndarray, "H W 3"], masks: Sequence[Window], colours: Sequence[tuple[int, int, int]]
) -> UInt8[np.ndarray, "H W 3"]:
    """Return a copy of the image with masks; the first is on top."""
    canvas, square = image.copy(), np.ones((3, 3), np.uint8)
    contour = max(1, round(max(image.shape[:2]) / 800))
    for (bitmap, left, top), colour in reversed(list(zip(masks, colours, strict=True))):
        if not bitmap.size:  # OpenCV refuses it
            continue
        area = canvas[top : top + bitmap.shape[0], left : left + bitmap.shape[1]]
        # An edge of the bitmap is an edge of the mask: only an edge of the image cuts masks.
        inner = cv2.erode(bitmap, square, iterations=contour, borderType=cv2.BORDER_CONSTANT, borderValue=0)
        blended = area + _OPACITY * (np.array(colour, np.float32) - area)
        area[inner > 0] = np.rint(blended).astype(np.uint8)[inner > 0]
        area[bitmap > inner] = colour
    return canvas


def font_for(size: tuple[int, int]) -> Font:
    """Return a font that is legible on an image of this width and height."""
    side = max(size)
    return ImageFont.load_default(round(max(10, min(12, side / 16), side / 60)))


def whole_pixels(box: Float[np.ndarray, " 4"], size: tuple[int, int]) -> Rectangle:
    """Return the pixels that a box covers in an image of this width and height, at least one."""
    corners = []
    for low, high, end in zip(box[:2].tolist(), box[2:].tolist(), size, strict=True):
        first = int(np.clip(np.floor(low), 0, end - 1))
        corners.append((first, int(np.clip(np.ceil(high), first + 1, end))))
    (left, right), (top, bottom) = corners
    return left, top, right, bottom


def text_size(text: str, font: Font) -> tuple[int, int]:
    """Return width and height of a label in pixels; the height does not depend on the text."""
    left, _, right, _ = font.getbbox(text)
    _, top, _, bottom = font.getbbox("Äg", anchor="ls")
    return round(right - left) + 6, round(bottom - top) + 4


def _shortened(text: str, font: Font, width: int) -> str:
    """Return the text, shortened in the middle to fit the width and 32 letters; the end, usually a score, is kept."""
    text = " ".join(text.split())  # Pillow anchors single lines only
    length, end = min(len(text), _MAX_LETTERS), text[-5:]
    result = text if len(text) <= _MAX_LETTERS else f"{text[: length - 6]}…{end}"
    while length > 6 and text_size(result, font)[0] > width:
        length -= 1
        result = f"{text[: length - 6]}…{end}"
    return result


def _place(
    i: int,
    boxes: Int[np.ndarray, "n 4"],
    text: tuple[int, int],
    taken: Int[np.ndarray, "m 4"],
    size: tuple[int, int],
) -> Int[np.ndarray, " 4"]:
    """Return the rectangle where the label of box `i` hides least: above or below the box, or inside at top or bottom.

    The label starts at the left side of the box or ends at its right side. It avoids labels already placed first,
    then boxes; pixels of its own box count half.

    Args:
        i: index of the box.
        boxes: all boxes, as rectangles.
        text: width and height of the label.
        taken: rectangles of the labels already placed.
        size: width and height of the image.
    """
    (left, top, right, bottom), (width, height) = boxes[i].tolist(), text
    corners = [
        (max(0, min(x, size[0] - width)), y)
        for y in (top - height, bottom, top, bottom - height)
        for x in (left, right - width)
        if y >= 0 and y + height <= size[1]
    ] or [(max(0, min(left, size[0] - width)), 0)]
    candidates = np.array([(x, y, x + width, y + height) for x, y in corners])
    hidden_of_box = _shared_pixels(candidates, boxes)
    hidden = hidden_of_box.sum(axis=1) - 0.5 * hidden_of_box[:, i]
    return candidates[np.lexsort((hidden, _shared_pixels(candidates, taken).sum(axis=1)))[0]]


def _shared_pixels(a: Int[np.ndarray, "p 4"], b: Int[np.ndarray, "q 4"]) -> Int[np.ndarray, "p q"]:
    """Return the area of the intersection of each rectangle in `a` with each in `b`, in pixels."""
    sides = np.minimum(a[:, None, 2:], b[:, 2:]) - np.maximum(a[:, None, :2], b[:, :2])
    return np.maximum(sides, 0).prod(axis=-1)


def _write(
    pen: ImageDraw.ImageDraw, rectangle: Sequence[int], text: str, font: Font, colour: tuple[int, int, int]
) -> None:
    left, top, right, bottom = rectangle
    pen.rectangle((left, top, right - 1, bottom - 1), fill=colour)
    luminance = np.dot(colour, (0.299, 0.587, 0.114))
    pen.text((left + 3, (top + bottom) / 2), text, fill=BLACK if luminance > 110 else WHITE, font=font, anchor="lm")
