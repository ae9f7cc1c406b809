"""Functions that write data folders in the formats of annotation tools, of images of 120 × 80 pixels."""

import json

import pytest
from PIL import Image


@pytest.fixture
def draw(tmp_path):
    """Return a function that saves images by their path in the data folder."""

    def save(*names):
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (120, 80)).save(tmp_path / name)

    return save


@pytest.fixture
def dump(tmp_path):
    """Return a function that saves a JSON document by its path in the data folder, and returns this path."""

    def save(name, document, encoding="utf-8"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document), encoding=encoding)
        return path

    return save
