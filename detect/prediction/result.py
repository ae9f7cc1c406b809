"""What was detected in one image: numpy arrays, and what people make of them. Nothing here needs torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64, UInt8
from PIL import Image

from detect.data.decode import decode
from detect.errors import UserError
from detect.report.drawing import draw_boxes, whole_pixels

_PICTURES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """The boxes, scores and classes found in one image.

    A result of fewer detections is had by indexing: `result[0]`, `result[:10]`, `result[result.scores > 0.5]`, and a
    loop over a result goes through its detections, each a result of one. The arrays are read-only.

    Raises:
        ValueError: the arrays do not fit each other, a box or score is not finite, or a label is no class.
    """

    boxes: Float32[np.ndarray, "n 4"]
    """xyxy in pixels of the image, best first."""
    scores: Float32[np.ndarray, " n"]
    labels: Int64[np.ndarray, " n"]
    """0 … C-1, the place of the class in `classes`."""
    classes: tuple[str, ...] = field(repr=False)
    category_ids: tuple[int, ...] = field(repr=False)
    """The training data's own id of each class, as COCO's."""
    size: tuple[int, int]
    """Height and width of the image."""
    path: str | None = None
    """Where the image is from; None for one that was given as bytes or pixels."""
    index: int | None = None
    """The image's place in its video or camera's stream."""
    pixels: UInt8[np.ndarray, "H W 3"] | None = field(default=None, repr=False)
    """RGB; kept where the image cannot be read from `path` again. `image` has the pixels in either case."""

    def __post_init__(self) -> None:
        n = len(self.boxes)
        for name, dtype, shape in (
            ("boxes", np.float32, (n, 4)),
            ("scores", np.float32, (n,)),
            ("labels", np.int64, (n,)),
        ):
            values = np.array(np.asarray(getattr(self, name)), dtype)  # a tensor is no array yet
            if name == "boxes" and n == 0:
                values = values.reshape(0, 4)  # of an empty list
            if values.shape != shape:
                raise ValueError(f"{name} have the shape {values.shape}, not {shape}")
            if not np.isfinite(values).all():
                raise ValueError(f"{name} hold NaN or infinity")
            self._freeze(name, values)
        if len(self.category_ids) != len(self.classes):
            raise ValueError(f"{len(self.category_ids)} category ids for {len(self.classes)} classes")
        if n and not 0 <= self.labels.min() <= self.labels.max() < len(self.classes):
            raise ValueError(f"labels are {self.labels.min()} … {self.labels.max()} of {len(self.classes)} classes")
        if self.pixels is not None:
            if self.pixels.shape != (*self.size, 3):
                raise ValueError(f"pixels have the shape {self.pixels.shape}, not {(*self.size, 3)}")
            self._freeze("pixels", self.pixels.view())

    def _freeze(self, name: str, values: np.ndarray) -> None:
        values.flags.writeable = False
        object.__setattr__(self, name, values)

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, key: int | np.integer | slice | Sequence[int] | np.ndarray) -> Result:
        places = np.atleast_1d(np.arange(len(self))[key])
        return replace(self, boxes=self.boxes[places], scores=self.scores[places], labels=self.labels[places])

    @property
    def names(self) -> tuple[str, ...]:
        """The class of each detection."""
        return tuple(self.classes[label] for label in self.labels.tolist())

    @property
    def image(self) -> UInt8[np.ndarray, "H W 3"]:
        """The image's RGB pixels: those kept, or else decoded from `path`, anew each time.

        Raises:
            UserError: the file is gone or another one, or nothing tells where the image is.
        """
        if self.pixels is not None:
            return self.pixels
        if self.path is None or self.index is not None or "://" in self.path:
            raise UserError(f"{self.path or 'the image'}: its pixels were not kept; predict on it anew")
        pixels = decode(Path(self.path))
        if pixels.shape[:2] != self.size:
            raise UserError(f"{self.path}: the image has another size than it had; predict on it anew")
        return pixels

    def filter(self, *, score: float | None = None, classes: str | int | Iterable[str | int] | None = None) -> Result:
        """The detections of at least this score and of these classes, by name or label.

        Raises:
            UserError: no class has such a name or label.
        """
        kept = np.ones(len(self), bool) if score is None else self.scores >= score
        return self[kept if classes is None else kept & np.isin(self.labels, labels_of(classes, self.classes))]

    def plot(self, path: str | Path | None = None, *, width: int | None = None) -> UInt8[np.ndarray, "H2 W2 3"]:
        """The image with the boxes drawn in the colour of their class, and beside each its name and score.

        Lines and letters are of a size to be read on the whole picture; on a small image they leave little to be seen,
        and a larger `width` helps.

        Args:
            path: where to write the picture too, as JPEG or PNG.
            width: of the picture in pixels, to which the image is resized first; by default the image's own.

        Returns:
            RGB.

        Raises:
            UserError: the image cannot be read, or the picture not written.
        """
        if path is not None:
            _check_writable(Path(path))
        image, scale = self.image, 1.0
        if width is not None:
            scale = width / image.shape[1]
            size = (width, max(1, round(image.shape[0] * scale)))
            image = np.array(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
        texts = [f"{name} {score:.2f}" for name, score in zip(self.names, self.scores.tolist(), strict=True)]
        picture = draw_boxes(image, self.boxes * scale, self.labels, texts)
        if path is not None:
            _write_picture(Path(path), picture)
        return picture

    def crop(self) -> list[UInt8[np.ndarray, "h w 3"]]:
        """What is inside each box, as RGB: every pixel that the box touches within the image, at least one."""
        if not len(self):
            return []
        image = self.image
        corners = [whole_pixels(box, (image.shape[1], image.shape[0])) for box in self.boxes]
        return [image[top:bottom, left:right].copy() for left, top, right, bottom in corners]

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        """The detections as COCO's results, the content of a `predictions.json`: x, y, width, height, unrounded."""
        boxes = self.boxes.astype(np.float64)  # where differences of float32 are exact
        boxes[:, 2:] -= boxes[:, :2]
        columns = zip(boxes.tolist(), self.scores.tolist(), self.labels.tolist(), strict=True)
        return [
            {"image_id": image_id, "category_id": self.category_ids[label], "bbox": box, "score": score}
            for box, score, label in columns
        ]

    def to_json(self, **options: Any) -> str:
        """The result as a JSON object: path, index, size and a list of detections. `options` are `json.dumps`'."""
        columns = zip(self.boxes.tolist(), self.scores.tolist(), self.labels.tolist(), self.names, strict=True)
        detections = [{"box": box, "score": score, "label": label, "name": name} for box, score, label, name in columns]
        height, width = self.size
        content = {"path": self.path, "index": self.index, "height": height, "width": width, "detections": detections}
        return json.dumps(content, **options)

    def to_pandas(self) -> Any:
        """The detections as a pandas `DataFrame`, one a row: path, index, x1, y1, x2, y2, score, label, name.

        Raises:
            UserError: pandas is not installed.
        """
        columns = dict(zip(("x1", "y1", "x2", "y2"), self.boxes.T.copy(), strict=True))
        columns |= {"score": self.scores, "label": self.labels, "name": np.array(self.names, object)}
        frame = _extra("pandas").DataFrame(columns)
        frame.insert(0, "path", np.full(len(self), self.path, object))
        frame.insert(1, "index", np.full(len(self), self.index, object))
        return frame

    def to_supervision(self) -> Any:
        """The detections as supervision's `Detections`, with the names where its annotators look for them.

        Raises:
            UserError: supervision is not installed.
        """
        return _extra("supervision").Detections(
            xyxy=self.boxes.copy(),
            confidence=self.scores.copy(),
            class_id=self.labels.copy(),
            data={"class_name": np.array(self.names, str)},
        )


def labels_of(chosen: str | int | Iterable[str | int], classes: Sequence[str]) -> list[int]:
    """The labels of classes that were chosen by name or label, sorted.

    Raises:
        UserError: no class has such a name or label; names that are near are given.
    """
    labels = set()
    for one in [chosen] if isinstance(chosen, str | int) else chosen:
        if isinstance(one, str) and one in classes:
            labels.add(classes.index(one))
        elif not isinstance(one, str) and 0 <= int(one) < len(classes):
            labels.add(int(one))
        else:
            by_folded = {name.casefold(): name for name in classes}
            near = [by_folded[name] for name in get_close_matches(str(one).casefold(), by_folded)] or classes[:10]
            raise UserError(f"class {one!r}: there is none; did you mean one of {', '.join(near)}?")
    return sorted(labels)


def _extra(package: str) -> Any:
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise UserError(f"{package} is not installed: `pip install {package}`") from None


def _check_writable(path: Path) -> None:
    """Before the work is done."""
    if path.suffix.lower() not in _PICTURES:
        raise UserError(f"{path}: pictures are written as {', '.join(_PICTURES)}; choose one of these endings")
    if not path.parent.is_dir():
        raise UserError(f"{path.parent}: there is no such folder to write {path.name} to; make it first")


def _write_picture(path: Path, picture: UInt8[np.ndarray, "H W 3"]) -> None:
    try:
        # Full resolution of the colours (4:4:4) keeps thin coloured lines sharp; PNG does not know these options.
        Image.fromarray(picture).save(path, quality=90, subsampling=0)
    except OSError as error:
        raise UserError(f"{path}: the picture cannot be written ({error.strerror or error})") from None
