"""Readers of annotation files, one module for each format.

Each module has `LOOKED_FOR` (the files of the format, for messages), `splits(tree)`, which returns the names of the
splits, none if the format does not fit, and `parse(tree, split, classes, log)`.
"""

from types import ModuleType

from detect.data.formats import (
    coco,
    createml,
    darknet,
    fiftyone,
    huggingface,
    label_studio,
    labelme,
    supervisely,
    via,
    voc,
    yolo,
)

FORMATS: dict[str, ModuleType] = {
    "coco": coco,
    "voc": voc,
    "yolo": yolo,
    "darknet": darknet,
    "labelme": labelme,
    "createml": createml,
    "supervisely": supervisely,
    "fiftyone": fiftyone,
    "huggingface": huggingface,
    "label_studio": label_studio,
    "via": via,
}
"""Detection formats by name."""
