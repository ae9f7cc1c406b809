"""Published weights that can be downloaded: torchvision's backbones and detectors, detectron2's and YOLOX's detectors.

The names of files contain the first digits of a checksum: sha256 in torchvision's, md5 in detectron2's
(its MODEL_ZOO.md, "How to Read the Tables"). YOLOX gives no checksums.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torchvision.models import get_model_weights

from detect.errors import UserError
from detect.files.download import RemoteFile, obtain, transfer_bars, verify

ARCHITECTURES = (
    *("alexnet", "vgg11", "vgg13", "vgg16", "vgg19", "vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn", "googlenet"),
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
)
"""torchvision's names of our backbones."""
DETECTORS = (
    *("fasterrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn_v2"),
    *("maskrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn_v2"),
)
"""torchvision's detectors that can be converted."""
MODEL_ZOO = "https://dl.fbaipublicfiles.com/detectron2"
DETECTRON2 = {
    "COCO-Detection/faster_rcnn_R_50_C4_1x": "137257644/model_final_721ade.pkl",
    "COCO-Detection/faster_rcnn_R_50_DC5_1x": "137847829/model_final_51d356.pkl",
    "COCO-Detection/faster_rcnn_R_50_FPN_1x": "137257794/model_final_b275ba.pkl",
    "COCO-Detection/faster_rcnn_R_50_C4_3x": "137849393/model_final_f97cb7.pkl",
    "COCO-Detection/faster_rcnn_R_50_DC5_3x": "137849425/model_final_68d202.pkl",
    "COCO-Detection/faster_rcnn_R_50_FPN_3x": "137849458/model_final_280758.pkl",
    "COCO-Detection/faster_rcnn_R_101_C4_3x": "138204752/model_final_298dad.pkl",
    "COCO-Detection/faster_rcnn_R_101_DC5_3x": "138204841/model_final_3e0943.pkl",
    "COCO-Detection/faster_rcnn_R_101_FPN_3x": "137851257/model_final_f6e8b1.pkl",
    "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x": "137259246/model_final_9243eb.pkl",
    "COCO-InstanceSegmentation/mask_rcnn_R_50_DC5_1x": "137260150/model_final_4f86c3.pkl",
    "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x": "137260431/model_final_a54504.pkl",
    "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_3x": "137849525/model_final_4ce675.pkl",
    "COCO-InstanceSegmentation/mask_rcnn_R_50_DC5_3x": "137849551/model_final_84107b.pkl",
    "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x": "137849600/model_final_f10217.pkl",
    "COCO-InstanceSegmentation/mask_rcnn_R_101_C4_3x": "138363239/model_final_a2914c.pkl",
    "COCO-InstanceSegmentation/mask_rcnn_R_101_DC5_3x": "138363294/model_final_0464b7.pkl",
    "COCO-InstanceSegmentation/mask_rcnn_R_101_FPN_3x": "138205316/model_final_a3ec72.pkl",
    "Misc/cascade_mask_rcnn_R_50_FPN_1x": "138602847/model_final_e9d89b.pkl",
    "Misc/cascade_mask_rcnn_R_50_FPN_3x": "144998488/model_final_480dd8.pkl",
}
"""Model and file of detectron2's detectors by their config (`detectron2.model_zoo`)."""
YOLOX = "https://github.com/Megvii-BaseDetection/YOLOX/releases/download/0.1.1rc0"
YOLOX_SIZES = ("nano", "tiny", "s", "m", "l", "x")
LIMIT = 10**9
"""Maximum size of a file in bytes; the largest has 548 MB."""


@dataclass(frozen=True, slots=True)
class Published:
    """Weights that a project has published."""

    name: str
    project: str
    remote: RemoteFile
    megabytes: float | None = None
    """Size that the project states, rounded."""
    is_backbone: bool = False
    """Whether `backbone.weights` takes them by name, rather than `--weights` as a file."""


@cache
def published_weights() -> dict[str, Published]:
    """Return the weights that can be downloaded, by name."""
    backbones = [
        _of_torchvision(str(entry), entry, is_backbone=True)
        for architecture in ARCHITECTURES
        for entry in get_model_weights(architecture)
        if entry.meta["categories"]  # others lack the layers of VGG's box head
    ]
    detectors = [_of_torchvision(name, get_model_weights(name).DEFAULT) for name in DETECTORS]
    zoo = [_of_detectron2(config, file) for config, file in DETECTRON2.items()]
    yolox = [_of_yolox(f"yolox_{size}") for size in YOLOX_SIZES]
    return {one.name: one for one in (*backbones, *detectors, *zoo, *yolox)}


def weights_folder() -> Path:
    """Return torch.hub's folder of checkpoints, in which torchvision's weights are found by name."""
    return Path(torch.hub.get_dir(), "checkpoints")


def download_weights(
    name: str, folder: Path | None = None, *, published: dict[str, Published] | None = None, progress: bool = True
) -> Path:
    """Download weights unless the file exists, verify their checksum, and return the file.

    An interrupted download is continued. A file that exists is verified as well.

    Args:
        name: one of `published_weights()`.
        folder: folder of the file; by default `weights_folder()`.
        published: weights by name; by default `published_weights()`.
        progress: show transferred bytes, speed and remaining time.

    Raises:
        UserError: the name is unknown, the server cannot be reached or sends another file, or the file cannot be
            written.
    """
    published = published_weights() if published is None else published
    if name not in published:
        near = get_close_matches(name, published, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else "see detect weights list"
        raise UserError(f"{name}: no published weights have this name; {hint}")
    remote, folder = published[name].remote, folder or weights_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with transfer_bars(progress) as bars:
            file = obtain(remote, folder, LIMIT, bars)
            verify(remote, file, bars)
        return file.replace(folder / remote.file)
    except OSError as error:  # of the disk
        place, reason = error.filename or folder, error.strerror or error
        raise UserError(f"{place}: {reason}; choose another folder with --out") from None


def _of_torchvision(name: str, entry: Any, is_backbone: bool = False) -> Published:
    file = entry.url.rpartition("/")[2]
    digits = file.removesuffix(".pth").rpartition("-")[2]
    remote = RemoteFile(url=entry.url, file=file, checksum=f"sha256:{digits}")
    return Published(name, "torchvision", remote, entry.meta["_file_size"], is_backbone)


def _of_detectron2(config: str, file: str) -> Published:
    name, digits = config.rpartition("/")[2], file.removesuffix(".pkl").rpartition("_")[2]
    remote = RemoteFile(url=f"{MODEL_ZOO}/{config}/{file}", file=f"{name}_{digits}.pkl", checksum=f"md5:{digits}")
    return Published(name, "detectron2", remote)


def _of_yolox(name: str) -> Published:
    return Published(name, "yolox", RemoteFile(url=f"{YOLOX}/{name}.pth", file=f"{name}.pth"))
