"""Cases, inputs and sides of `step.py`: our detectors and torchvision's, each built for a process of its own."""

from __future__ import annotations

import ctypes
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from alternating import process_status
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models.detection import FasterRCNN as TorchvisionFasterRCNN
from torchvision.models.detection import MaskRCNN as TorchvisionMaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d

from detect.data.decode import decode
from detect.data.masks import MASK_SIZE, paste_whole
from detect.foreign_weights.torchvision import detector_from_torchvision
from detect.models import Detector
from detect.ops.winograd import train_with_winograd
from detect.prediction.prepare import Precision, prepare
from detect.structures import Batch, Images, Targets
from detect.training.module import fastest_memory_format

CLASSES = 91
OBJECTS = 8


@dataclass(frozen=True)
class Case:
    """One row of the table, written like "train cuda 800 × 2 bf16" (short side × batch)."""

    what: str
    """`train` or `infer`."""
    device: str
    size: int
    """Short side in pixels; the long side is 4/3 of it."""
    batch: int
    precision: Precision
    compile: bool
    masks: bool = False
    """Mask R-CNN instead of Faster R-CNN."""

    def __str__(self) -> str:
        compiled = " compiled" if self.compile else ""
        masks = " masks" if self.masks else ""
        return f"{self.what} {self.device} {self.size} × {self.batch} {self.precision}{compiled}{masks}"


def cases(
    device: str, size: int, what: str, precisions: Sequence[Precision], compiled: bool, masks: bool
) -> list[Case]:
    """Return the cases of a device."""
    training = [("train", 2)]
    inference = [("infer", batch) for batch in ((1,) if device == "cpu" else (1, 8, 16))]
    return [
        Case(kind, device, size, batch, precision, compile, masks)
        for kind, batch in training + inference
        if what in ("all", kind)
        for precision in precisions
        for compile in ((False, True) if compiled else (False,))
    ]


# ---- inputs and weights ----------------------------------------------------------------------------------------------


def pictures(case: Case, folder: Path | None) -> Tensor:
    """Return uint8 images [B, 3, H, W]: those of a folder, resized, or smooth random colours with noise."""
    height, width = case.size, case.size * 4 // 3
    if folder is not None:
        paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
        if not paths:
            sys.exit(f"{folder}: holds no .jpg or .png; give a folder of images")
        chosen = [paths[place % len(paths)] for place in range(case.batch)]
        images = [cv2.resize(decode(path), (width, height), interpolation=cv2.INTER_AREA) for path in chosen]
        return torch.stack([torch.from_numpy(image).permute(2, 0, 1) for image in images])
    generator = torch.Generator().manual_seed(0)
    clouds = [
        F.interpolate(torch.rand(case.batch, 3, 3 * n, 4 * n, generator=generator), (height, width), mode="bicubic")
        for n in (2, 6, 18)
    ]
    noise = torch.rand(case.batch, 3, height, width, generator=generator)
    return ((0.5 * clouds[0] + 0.3 * clouds[1] + 0.15 * clouds[2] + 0.05 * noise) * 255).clamp(0, 255).to(torch.uint8)


def ground_truths(case: Case) -> tuple[Tensor, Tensor]:
    """Return boxes [B, 8, 4] with a tenth to half of the image's sides, and labels [B, 8] without background."""
    generator = torch.Generator().manual_seed(1)
    extent = torch.tensor([case.size * 4 // 3, case.size], dtype=torch.float32)
    sides = (0.1 + 0.4 * torch.rand(case.batch, OBJECTS, 2, generator=generator)) * extent
    corners = torch.rand(case.batch, OBJECTS, 2, generator=generator) * (extent - sides)
    labels = torch.randint(CLASSES - 1, (case.batch, OBJECTS), generator=generator)
    return torch.cat([corners, corners + sides], dim=-1), labels


def ellipses() -> Tensor:
    """Return the same mask for each object in a grid over its box: uint8 [56, 56]."""
    steps = (torch.arange(MASK_SIZE) + 0.5) / MASK_SIZE * 2 - 1
    return ((steps[:, None] ** 2 + steps**2 <= 1) * 255).to(torch.uint8)


def torchvision_model(size: int, masks: bool = False) -> TorchvisionFasterRCNN:
    """Return torchvision's network with random weights, small activations and some confident detections."""
    torch.manual_seed(2)
    backbone = resnet_fpn_backbone(
        backbone_name="resnet50", weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=3
    )
    model = (TorchvisionMaskRCNN if masks else TorchvisionFasterRCNN)(backbone, CLASSES, min_size=size)
    with torch.no_grad():
        for name, value in model.named_buffers():
            if name.endswith("bn3.weight"):  # otherwise each of the 16 residual blocks adds its input's variance again
                value.fill_(0.2)
        nn.init.normal_(model.roi_heads.box_predictor.cls_score.weight, std=0.5)
    return model


# ---- sides, each in a process of its own -----------------------------------------------------------------------------


class Side:
    """Model and input on a device; the parent process calls the methods without arguments."""

    def __init__(self, case: Case, folder: Path | None) -> None:
        self.case, self.device = case, torch.device(case.device)
        self.resident = process_status("VmRSS") if case.device == "cpu" else 0
        self.pixels, (self.boxes, self.labels) = pictures(case, folder), ground_truths(case)
        self.waits: Counter[str] = Counter()

    def run(self) -> Any:
        """Run one step; in inference, return its detections."""
        raise NotImplementedError

    def guard(self) -> AbstractContextManager[None]:
        """Return the context of a timed step."""
        return nullcontext()

    def detections(self) -> list[dict[str, Tensor]]:
        """Return boxes, scores and labels 0 … 89 of each image."""
        raise NotImplementedError

    def waits_counted(self) -> Counter[str]:
        """Return the data-dependent operations of a step, counted once in eager mode."""
        return self.waits

    def warm(self) -> None:
        """Compile and run the first steps, where algorithms are selected; peak memory counts after the first step."""
        self.run()
        self._forget_peak()
        for _ in range(1 if self.device.type == "cpu" else 9):
            self.run()

    def seconds(self) -> float:
        """Return the seconds of one step."""
        self._wait()
        start = time.perf_counter()
        with self.guard():
            self.run()
        self._wait()
        return time.perf_counter() - start

    def count(self) -> Counter[str]:
        """Count the data-dependent operations of one step, by name."""
        with DataDependent() as mode:
            self.run()
        return mode.counts

    def memory(self) -> float:
        """Return the peak memory of model and steps in GiB; on the CPU, of the process without its libraries."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated() / 2**30
        return (process_status("VmHWM") - self.resident) / 2**20

    def set_up_training(self, model: nn.Module) -> None:
        """Create the optimiser, with a learning rate so small that the weights hardly change."""
        self.optimizer = torch.optim.SGD(
            [parameter for parameter in model.parameters() if parameter.requires_grad], lr=1e-8, momentum=0.9
        )

    def optimize(self, losses: dict[str, Tensor]) -> None:
        """Run the backward pass and an SGD step."""
        self.optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        self.optimizer.step()

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context of mixed precision if the case uses bf16."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.case.precision == "bf16")

    def _forget_peak(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        else:  # return the memory of building the model to the system, and reset the peak that Linux records
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


class Ours(Side):
    """`detect`'s Faster R-CNN."""

    def __init__(self, case: Case, folder: Path | None) -> None:
        super().__init__(case, folder)
        theirs = torchvision_model(case.size, case.masks)
        model = detector_from_torchvision(theirs.state_dict(), frozen_eps=1e-5).to(self.device)
        self.batch = self.batch_of(case, self.pixels, self.boxes, self.labels).to(self.device)
        self.model: Detector = model
        if case.what == "train":
            on_cpu = self.device.type == "cpu"
            model.train().to_memory_format(fastest_memory_format(on_cpu))  # both like `detect train`
            if on_cpu:
                train_with_winograd(model)
            self.set_up_training(model)
        else:
            self.model = prepare(model, case.precision)
        self.loss = self.model.loss
        self.waits = self.count()
        if case.compile and case.what == "train":
            self.loss = torch.compile(model.loss, fullgraph=True)
        elif case.compile:
            self.model = prepare(model, case.precision, compile=True)

    def run(self) -> Any:
        """Run a training step, or return the detections as padded tensors."""
        if self.case.what == "infer":
            return self.model.detect(self.batch.images)
        with self.autocast():
            losses = self.loss(self.batch)
        return self.optimize(losses)

    def guard(self) -> AbstractContextManager[None]:
        """Return a context in which every synchronisation with a GPU raises."""
        return NoWaiting() if self.device.type == "cuda" else nullcontext()

    def detections(self) -> list[dict[str, Tensor]]:
        """Return the detections without padding."""
        padded = self.run().to("cpu")
        return [
            {"boxes": padded.boxes[i, valid], "scores": padded.scores[i, valid], "labels": padded.labels[i, valid]}
            for i, valid in enumerate(padded.valid)
        ]

    @staticmethod
    def batch_of(case: Case, pixels: Tensor, boxes: Tensor, labels: Tensor) -> Batch:
        """Pad the images to multiples of 32 like torchvision, and return them with their targets."""
        count, _, height, width = pixels.shape
        canvas = F.pad(pixels, (0, -width % 32, 0, -height % 32)).to(memory_format=torch.channels_last)
        full = torch.ones(count, OBJECTS, dtype=torch.bool)
        masks = ellipses().expand(count, OBJECTS, -1, -1).contiguous() if case.masks else None
        return Batch(
            images=Images(canvas, torch.tensor([[height, width]] * count)),
            targets=Targets(boxes, labels, valid=full, crowd=~full, masks=masks),
            ids=torch.arange(count),
            scales=torch.ones(count, 2),
        )


class Torchvision(Side):
    """torchvision's Faster R-CNN."""

    def __init__(self, case: Case, folder: Path | None) -> None:
        super().__init__(case, folder)
        self.model = torchvision_model(case.size, case.masks).to(self.device)
        self.images = [image.to(self.device).float() / 255 for image in self.pixels]
        self.targets = [
            {"boxes": boxes.to(self.device), "labels": labels.to(self.device) + 1}
            for boxes, labels in zip(self.boxes, self.labels, strict=True)
        ]
        if case.masks:
            for target, image in zip(self.targets, self.pixels, strict=True):
                target["masks"] = self._whole_masks(target["boxes"].cpu(), *image.shape[1:]).to(self.device)
        if case.what == "train":
            self.model.train()
            self.set_up_training(self.model)
        else:
            self.model.eval()
        self.waits = self.count()

    def run(self) -> Any:
        """Run a training step, or return a dictionary of detections for each image."""
        if self.case.what == "infer":
            with torch.no_grad(), self.autocast():
                return self.model(self.images)
        with self.autocast():
            losses = self.model(self.images, self.targets)
        return self.optimize(losses)

    def _whole_masks(self, boxes: Tensor, height: int, width: int) -> Tensor:
        mask = ellipses().numpy() / 255
        return torch.from_numpy(np.stack([paste_whole(mask, box.numpy(), height, width) for box in boxes]))

    def detections(self) -> list[dict[str, Tensor]]:
        """Return the detections with labels from 0."""
        detections = [{name: value.float().cpu() for name, value in one.items()} for one in self.run()]
        return [{**one, "labels": one["labels"].long() - 1} for one in detections]


SIDES = {"ours": Ours, "torchvision": Torchvision}
NAMES = tuple(SIDES)


class DataDependent(TorchDispatchMode):
    """Counts the operations that synchronise with a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._waits(function, args):
            self.counts[str(function.overloadpacket)] += 1
        return function(*args, **(kwargs or {}))

    def _waits(self, function: Any, args: Any) -> bool:
        name = str(function.overloadpacket)
        if name in ("aten.index", "aten.index_put", "aten.index_put_"):  # a mask becomes indices by `nonzero`
            return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
        tags = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
        return name == "torchvision.nms" or bool(tags & set(function.tags))


class NoWaiting:
    """Context in which PyTorch raises on every synchronisation with the GPU."""

    def __enter__(self) -> None:
        torch.cuda.set_sync_debug_mode("error")

    def __exit__(self, *_: object) -> None:
        torch.cuda.set_sync_debug_mode("default")
