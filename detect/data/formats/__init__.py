"""Readers of annotation files, one module for each format.

Each module has `LOOKED_FOR` (the files of the format, for messages), `splits(tree)`, which returns the names of the
splits, none if the format does not fit, and `parse(tree, split, classes, log)`.
"""

from types import ModuleType

from detect.data.formats import (
    coco,
    createml,
    csv_table,
    cvat,
    darknet,
    fiftyone,
    huggingface,
    kitti,
    label_studio,
    labelme,
    openimages,
    supervisely,
    via,
    visdrone,
    voc,
    widerface,
    yolo,
)

FORMATS: dict[str, ModuleType] = {
    "coco": coco,
    "voc": voc,
    "yolo": yolo,
    "darknet": darknet,
    "csv": csv_table,
    "openimages": openimages,
    "kitti": kitti,
    "cvat": cvat,
    "visdrone": visdrone,
    "widerface": widerface,
    "labelme": labelme,
    "createml": createml,
    "supervisely": supervisely,
    "fiftyone": fiftyone,
    "huggingface": huggingface,
    "label_studio": label_studio,
    "via": via,
}
"""Detection formats by name."""
USUAL_FILES = {
    "coco": ("annotations/instances_*.json", "*/_annotations.coco.json"),
    "voc": tuple(f"{base}ImageSets/Main/*.txt" for base in ("", "VOC*/", "VOCdevkit/VOC*/")),
    "yolo": ("data.yaml",),
}
"""Glob patterns of files whose names alone show the format."""
