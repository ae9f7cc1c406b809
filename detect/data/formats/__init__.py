"""Readers of annotation files, one module for each format.

Each module has `LOOKED_FOR` (the files of the format, for messages), `splits(tree)`, which returns the names of the
splits, none if the format does not fit, and `parse(tree, split, classes, log)`.
"""

from types import ModuleType

from detect.data.formats import coco, darknet, voc, yolo

FORMATS: dict[str, ModuleType] = {"coco": coco, "voc": voc, "yolo": yolo, "darknet": darknet}
"""Detection formats by name."""
