"""Detections in one image as numpy arrays, with drawing and conversions, without importing torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64, UInt8
from PIL import Image

from detect.data.decode import decode
from detect.data.masks import RLE, paste, paste_all
from detect.data.outlines import trace
from detect.errors import UserError, install_command, listed
from detect.report.drawing import Window, draw_boxes, whole_pixels

_SUFFIXES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """Detections in one image, best first.

    Indexing selects detections and returns a result: `result[0]`, `result[:10]`, `result[result.scores > 0.5]`.
    Iteration yields a result for each detection. The arrays are read-only.

    Raises:
        ValueError: the shapes do not match, a box or score is not finite, or a label is out of range.
    """

    boxes: Float32[np.ndarray, "n 4"]
    """Boxes as x1, y1, x2, y2 in pixels of the image."""
    scores: Float32[np.ndarray, " n"]
    """Probability of each box's class."""
    labels: Int64[np.ndarray, " n"]
    """Index of each box's class in `classes`, 0 … C-1."""
    classes: tuple[str, ...]
    """Names of all C classes of the detector."""
    category_ids: tuple[int, ...]
    """Category id of each class in the training data, such as COCO's."""
    size: tuple[int, int]
    """Height and width of the image."""
    path: str | None = None
    """File or web address of the image; None if it was given as bytes or pixels."""
    index: int | None = None
    """Index of the frame in its video or camera stream; None for a single image."""
    pixels: UInt8[np.ndarray, "H W 3"] | None = None
    """RGB pixels, kept only if the image cannot be read from `path` again; `image` always returns them."""
    mask_probabilities: Float32[np.ndarray, "n m m"] | None = None
    """Probability of each cell of a grid over each box that it belongs to the object; None without a mask head."""

    def __post_init__(self) -> None:
        n = len(self.boxes)
        for name, dtype, shape in (
            ("boxes", np.float32, (n, 4)),
            ("scores", np.float32, (n,)),
            ("labels", np.int64, (n,)),
        ):
            values = np.array(np.asarray(getattr(self, name)), dtype)  # asarray converts a tensor
            if name == "boxes" and n == 0:
                values = values.reshape(0, 4)  # an empty list has shape (0,)
            if values.shape != shape:
                raise ValueError(f"{name} have shape {values.shape}, not {shape}")
            if not np.isfinite(values).all():
                raise ValueError(f"{name} contain NaN or infinity")
            self._freeze(name, values)
        if len(self.category_ids) != len(self.classes):
            raise ValueError(f"{len(self.category_ids)} category ids for {len(self.classes)} classes")
        if n and not 0 <= self.labels.min() <= self.labels.max() < len(self.classes):
            raise ValueError(f"labels are {self.labels.min()} … {self.labels.max()} for {len(self.classes)} classes")
        if self.mask_probabilities is not None:
            values = np.array(np.asarray(self.mask_probabilities), np.float32)
            if values.ndim != 3 or len(values) != n or values.shape[1] != values.shape[2]:
                raise ValueError(f"mask_probabilities have shape {values.shape}, not ({n}, m, m)")
            if not np.isfinite(values).all():
                raise ValueError("mask_probabilities contain NaN or infinity")
            self._freeze("mask_probabilities", values)
        if self.pixels is not None:
            if self.pixels.shape != (*self.size, 3):
                raise ValueError(f"pixels have shape {self.pixels.shape}, not {(*self.size, 3)}")
            self._freeze("pixels", self.pixels.view())

    def _freeze(self, name: str, values: np.ndarray) -> None:
        values.flags.writeable = False
        object.__setattr__(self, name, values)

    def __len__(self) -> int:
        return len(self.boxes)

    def __repr__(self) -> str:
        place = [
            f"{name}={value!r}" for name in ("path", "index", "size") if (value := getattr(self, name)) is not None
        ]
        found = [f"{name} {score:.2f}" for name, score in zip(self.names, self.scores.tolist(), strict=True)]
        count = f"{len(self) or 'no'} detection{'s' * (len(self) != 1)}"
        return f"Result({', '.join(place)}, {count}{': ' * bool(found)}{listed(found)})"

    def __getitem__(self, key: int | np.integer | slice | Sequence[int] | np.ndarray) -> Result:
        indices = np.atleast_1d(np.arange(len(self))[key])
        masks = None if self.mask_probabilities is None else self.mask_probabilities[indices]
        return replace(
            self,
            boxes=self.boxes[indices],
            scores=self.scores[indices],
            labels=self.labels[indices],
            mask_probabilities=masks,
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Class name of each detection."""
        return tuple(self.classes[label] for label in self.labels.tolist())

    @property
    def image(self) -> UInt8[np.ndarray, "H W 3"]:
        """RGB pixels of the image. If `pixels` is None, each access decodes `path`.

        Raises:
            UserError: the file is missing or has changed its size, or the pixels were not kept.
        """
        if self.pixels is not None:
            return self.pixels
        if self.path is None or self.index is not None or "://" in self.path:
            raise UserError(f"{self.path or 'the image'}: the pixels were not kept; predict on it again")
        pixels = decode(Path(self.path))
        if pixels.shape[:2] != self.size:
            raise UserError(f"{self.path}: the size of the image has changed; predict on it again")
        return pixels

    @property
    def masks(self) -> Bool[np.ndarray, "n H W"] | None:
        """Pixels of each object, computed at each access; None if the detector predicts no masks.

        One megabyte for each detection in an image of a megapixel: index the result to get few of them.
        """
        if self.mask_probabilities is None:
            return None
        masks = np.zeros((len(self), *self.size), bool)
        for mask, (window, left, top) in zip(masks, self._windows(), strict=True):
            mask[top : top + window.shape[0], left : left + window.shape[1]] = window
        return masks

    def encoded_masks(self) -> tuple[RLE, ...] | None:
        """Return the run-length encoded mask of each object, as in COCO's files; None without masks."""
        return None if self.mask_probabilities is None else paste_all(self.mask_probabilities, self.boxes, *self.size)

    def polygons(self) -> list[list[Float64[np.ndarray, "_k 2"]]] | None:
        """Return the outlines of each object's pieces and holes, x and y in pixels of the image; None without masks.

        They follow the edges of the pixels exactly. The even-odd rule tells the inside from the outside.
        """
        return None if self.mask_probabilities is None else [trace(*window) for window in self._windows()]

    def _windows(self, scale: float = 1.0) -> list[Window]:
        """Return the mask of each object in the window of its box, in the image resized by `scale`."""
        assert self.mask_probabilities is not None
        height, width = (max(1, round(side * scale)) for side in self.size)
        pairs = zip(self.mask_probabilities, self.boxes * scale, strict=True)
        return [paste(probabilities, box, height, width) for probabilities, box in pairs]

    def filter(self, *, score: float | None = None, classes: str | int | Iterable[str | int] | None = None) -> Result:
        """Return the detections that have a minimum score or certain classes.

        Args:
            score: score threshold, inclusive.
            classes: names or labels of the classes to keep.

        Raises:
            UserError: no class has such a name or label.
        """
        kept = np.ones(len(self), bool) if score is None else self.scores >= score
        return self[kept if classes is None else kept & np.isin(self.labels, class_labels(classes, self.classes))]

    def plot(self, path: str | Path | None = None, *, width: int | None = None) -> UInt8[np.ndarray, "H2 W2 3"]:
        """Draw the boxes and masks, with their class names and scores, in a colour per class.

        Lines and text are legible when the whole picture is shown. On a small image they hide much of it; then
        give a larger `width`.

        Args:
            path: JPEG or PNG file to write the picture to; by default none is written.
            width: width of the picture in pixels, to which the image is resized first; by default the image's.

        Returns:
            The picture as RGB.

        Raises:
            UserError: the image cannot be read, or the picture cannot be written.
        """
        if path is not None:
            _check_writable(Path(path))
        image, scale = self.image, 1.0
        if width is not None:
            scale = width / image.shape[1]
            size = (width, max(1, round(image.shape[0] * scale)))
            image = np.array(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
        texts = [f"{name} {score:.2f}" for name, score in zip(self.names, self.scores.tolist(), strict=True)]
        masks = None if self.mask_probabilities is None else self._windows(scale)
        picture = draw_boxes(image, self.boxes * scale, self.labels, texts, masks)
        if path is not None:
            _write_picture(Path(path), picture)
        return picture

    def crop(self) -> list[UInt8[np.ndarray, "h w 3"]]:
        """Return the part of the image in each box as RGB: all pixels that the box touches, at least one."""
        if not len(self):
            return []
        image = self.image
        corners = [whole_pixels(box, (image.shape[1], image.shape[0])) for box in self.boxes]
        return [image[top:bottom, left:right].copy() for left, top, right, bottom in corners]

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        """Return the detections as COCO results, the entries of a `predictions.json`.

        Boxes are x, y, width, height, unrounded. Masks are run-length encoded.

        Args:
            image_id: id of the image in the COCO file.
        """
        boxes = self.boxes.astype(np.float64)  # differences of float32 numbers are exact in float64
        boxes[:, 2:] -= boxes[:, :2]
        columns = zip(boxes.tolist(), self.scores.tolist(), self.labels.tolist(), strict=True)
        results: list[dict[str, Any]] = [
            {"image_id": image_id, "category_id": self.category_ids[label], "bbox": box, "score": score}
            for box, score, label in columns
        ]
        for result, mask in zip(results, self.encoded_masks() or (), strict=False):
            result["segmentation"] = mask.segmentation()
        return results

    def to_json(self, **options: Any) -> str:
        """Return the result as a JSON object with path, index, size and a list of detections.

        Masks are run-length encoded like COCO's.

        Args:
            **options: options of `json.dumps`.
        """
        columns = zip(self.boxes.tolist(), self.scores.tolist(), self.labels.tolist(), self.names, strict=True)
        detections: list[dict[str, Any]] = [
            {"box": box, "score": score, "label": label, "name": name} for box, score, label, name in columns
        ]
        for detection, mask in zip(detections, self.encoded_masks() or (), strict=False):
            detection["segmentation"] = mask.segmentation()
        height, width = self.size
        content = {"path": self.path, "index": self.index, "height": height, "width": width, "detections": detections}
        return json.dumps(content, **options)

    def to_pandas(self) -> Any:
        """Return a pandas `DataFrame` with a detection per row: path, index, x1, y1, x2, y2, score, label, name.

        With masks, the column `polygons` has the outlines of each object, lists of x1, y1, x2, y2, ….

        Raises:
            UserError: pandas is not installed.
        """
        columns = dict(zip(("x1", "y1", "x2", "y2"), self.boxes.T.copy(), strict=True))
        columns |= {"score": self.scores, "label": self.labels, "name": np.array(self.names, object)}
        if (polygons := self.polygons()) is not None:
            columns["polygons"] = [[outline.ravel().tolist() for outline in outlines] for outlines in polygons]
        frame = _import_extra("pandas").DataFrame(columns)
        frame.insert(0, "path", np.full(len(self), self.path, object))
        frame.insert(1, "index", np.full(len(self), self.index, object))
        return frame

    def to_supervision(self) -> Any:
        """Return the detections as `supervision.Detections`, with masks and with class names for its annotators.

        Raises:
            UserError: supervision is not installed.
        """
        return _import_extra("supervision").Detections(
            xyxy=self.boxes.copy(),
            confidence=self.scores.copy(),
            class_id=self.labels.copy(),
            mask=self.masks,
            data={"class_name": np.array(self.names, str)},
        )


def class_labels(chosen: str | int | Iterable[str | int], classes: Sequence[str]) -> list[int]:
    """Return the labels of the chosen classes, sorted.

    Args:
        chosen: names or labels of classes.
        classes: names of all classes.

    Raises:
        UserError: no class has such a name or label; the message has similar names.
    """
    labels = set()
    for key in [chosen] if isinstance(chosen, str | int) else chosen:
        if isinstance(key, str) and key in classes:
            labels.add(classes.index(key))
        elif not isinstance(key, str) and 0 <= int(key) < len(classes):
            labels.add(int(key))
        else:
            by_casefold = {name.casefold(): name for name in classes}
            matches = get_close_matches(str(key).casefold(), by_casefold)
            similar = [by_casefold[name] for name in matches] or classes[:10]
            raise UserError(f"class {key!r}: no such class; did you mean one of {', '.join(similar)}?")
    return sorted(labels)


def _import_extra(package: str) -> Any:
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise UserError(f"{package} is not installed: {install_command(package)}") from None


def _check_writable(path: Path) -> None:
    """Raise `UserError` if the path's folder does not exist or its suffix is not supported, before drawing."""
    if path.suffix.lower() not in _SUFFIXES:
        raise UserError(f"{path}: unknown picture format; choose one of {', '.join(_SUFFIXES)}")
    if not path.parent.is_dir():
        raise UserError(f"{path.parent}: no such folder; create it to write {path.name}")


def _write_picture(path: Path, picture: UInt8[np.ndarray, "H W 3"]) -> None:
    try:
        # Colour at full resolution (4:4:4) keeps thin lines sharp; PNG ignores these options.
        Image.fromarray(picture).save(path, quality=90, subsampling=0)
    except OSError as error:
        raise UserError(
            f"{path}: the picture cannot be written ({error.strerror or error}); choose another path"
        ) from None
