"""Readers of annotation files, one module per format.

Each module of a detection format has `LOOKED_FOR` (the format's files, for messages), `splits` and `parse`.
"""

from types import ModuleType

from detect.data.formats import coco, voc, yolo

FORMATS: dict[str, ModuleType] = {"coco": coco, "voc": voc, "yolo": yolo}
"""Detection formats by name, in the order in which they are tried."""
