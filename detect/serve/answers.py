"""Answers of the service: the types that its OpenAPI description shows, and how they are made from detections."""

from __future__ import annotations

import json
from typing import Any, Literal

import cv2
from pydantic import BaseModel, ConfigDict, Field

from detect.errors import UserError
from detect.prediction.result import Result

Form = Literal["detect", "coco", "jpeg"]
"""Forms of an answer."""
CONTENT_TYPES: dict[Form, str] = {"detect": "application/json", "coco": "application/json", "jpeg": "image/jpeg"}
_JPEG_QUALITY, _MAX_JPEG_SIDE = 90, 65_500


class Mask(BaseModel):
    """Run-length encoded mask, as in COCO's results."""

    size: tuple[int, int] = Field(description="height and width of the image")
    counts: str = Field(description="compressed runs, column by column")


class Detection(BaseModel):
    """Detected object."""

    box: tuple[float, float, float, float] = Field(description="x1, y1, x2, y2 in pixels of the image")
    score: float = Field(description="probability of the class, 0 … 1")
    label: int = Field(description="index of the class in the model's list")
    name: str = Field(description="name of the class")
    segmentation: Mask | None = Field(None, description="mask, if the detector predicts masks")


class Detections(BaseModel):
    """Detected objects of an image, best first."""

    height: int = Field(description="height of the image in pixels, after its EXIF orientation is applied")
    width: int
    detections: list[Detection]


class CocoResult(BaseModel):
    """Detected object as in a COCO results file."""

    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float] = Field(description="x, y, width, height in pixels of the image")
    score: float
    segmentation: Mask | None = None


class Model(BaseModel):
    """Detector that the service runs."""

    model_config = ConfigDict(protected_namespaces=())

    classes: tuple[str, ...] = Field(description="names of the classes")
    score: float = Field(description="score threshold of requests that give none")
    min_score: float = Field(description="lowest score threshold that a request may give")
    masks: bool = Field(description="true if the detector predicts masks")
    max_bytes: int = Field(description="maximum size of a request's body")
    max_pixels: int = Field(description="maximum width × height of an image")
    needs_key: bool = Field(description="true if requests for predictions need a key")


class State(BaseModel):
    """State of the service."""

    status: Literal["ok", "ready", "stopping"]


class Problem(BaseModel):
    """Reason why a request was refused."""

    error: str


def body_of(result: Result, form: Form, image_id: int) -> bytes:
    """Return the body of an answer."""
    if form == "jpeg":
        height, width = result.size
        if max(height, width) > _MAX_JPEG_SIDE:
            raise UserError(f"image: no JPEG of {width} × {height} pixels can be written; ask for another form")
        picture = cv2.cvtColor(result.plot(), cv2.COLOR_RGB2BGR)
        return cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1].tobytes()
    if form == "coco":
        return json.dumps(result.to_coco(image_id)).encode()
    content: dict[str, Any] = json.loads(result.to_json())
    return json.dumps({name: content[name] for name in ("height", "width", "detections")}).encode()
