"""The interface of all detectors."""

from __future__ import annotations

from dataclasses import field, replace
from itertools import chain
from typing import ClassVar, Literal, Self

import torch
from jaxtyping import Bool, Float, Num
from torch import Tensor, nn

from detect.backbones import AnyBackbone, Backbone, FeatureInfo, Neck
from detect.models.postprocess import PostprocessOptions
from detect.options import options
from detect.structures import Batch, Detections, Images, Proposals, Targets

Losses = dict[str, Float[Tensor, ""]]
ProposalSource = Literal["own", "given", "none"]
"""Where a detector's proposals come from: `own` from the detector, `given` from a store or from selective search;
`none` is a one-stage detector."""


@options
class DetectorOptions:
    """Base class of the options of detectors.

    A subclass is in the file of its model, defines a field `name` with its YAML name, and holds the paper's defaults.
    """

    name: str
    backbone: AnyBackbone
    postprocess: PostprocessOptions = field(default_factory=PostprocessOptions)

    proposals: ClassVar[ProposalSource]
    recipes: ClassVar[tuple[str, ...]] = ("joint",)
    """Names of the training recipes for this detector, the default one first; see `detect.training.recipes`."""

    @property
    def predicts_masks(self) -> bool:
        """Whether the detector has a mask head, which needs masks in training."""
        return getattr(self, "masks", None) is not None


class Detector(nn.Module):
    """Base class of detectors.

    A subclass sets `Options` to its options class, is constructed as `Model(num_classes, options)`, and implements
    `loss` and `detect`. Training, evaluation, prediction and export need only these two methods.

    Args:
        num_classes: C, without background.
        options: options of the subclass. `detect` applies the attribute `postprocessing`, at first
            `options.postprocess`; prediction may change its thresholds.
        backbone: feature maps of the whole image.
        neck: pyramid over these maps; without one the heads run on the backbone's last map.
    """

    Options: ClassVar[type[DetectorOptions]]

    def __init__(
        self, num_classes: int, options: DetectorOptions, backbone: Backbone, neck: Neck | None = None
    ) -> None:
        super().__init__()
        self.num_classes, self.options = num_classes, options
        self.backbone, self.neck = backbone, neck
        if neck is not None:
            backbone.keep_levels(neck.names)
        self.postprocessing = options.postprocess
        self.memory_format = torch.channels_last

    def loss(self, batch: Batch) -> Losses:
        """Return the losses by name; training sums them. Shapes must not depend on the values of the batch."""
        raise NotImplementedError

    def detect(self, images: Images, proposals: Proposals | None = None) -> Detections:
        """Return the detections in pixels of the canvas, in float32 even if the weights are bf16.

        For export, read the batch size as `images.pixels.shape[0]`: `len` would make it a constant of the graph.

        Args:
            images: a batch of images on one canvas.
            proposals: for detectors whose proposals are `given`.
        """
        raise NotImplementedError

    def forward(self, images: Images | Num[Tensor, "B 3 H W"], proposals: Proposals | None = None) -> Detections:
        """Call `detect`; images given as a tensor of RGB pixels fill the canvas."""
        if isinstance(images, Tensor):
            sizes = torch.tensor(images.shape[2:], device=images.device).expand(len(images), -1)
            images = Images(images, sizes)
        return self.detect(images, proposals)

    @torch.no_grad()
    def validate(self, batch: Batch) -> tuple[Losses, Detections]:
        """Return losses and detections of a batch. Override this if one pass can compute both."""
        return self.loss(batch), self.detect(batch.images, batch.proposals)

    def features(self, images: Images) -> list[Float[Tensor, "B _c _h _w"]]:
        """Return the feature maps of the normalised images; outside the images the canvas is zero."""
        mean, std = self.backbone.mean[:, None, None], self.backbone.std[:, None, None]
        pixels = (images.pixels.to(mean.dtype) - mean) / std
        height, width = (images.sizes[:, side, None] for side in (0, 1))
        rows = torch.arange(pixels.shape[2], device=pixels.device) < height
        columns = torch.arange(pixels.shape[3], device=pixels.device) < width
        pixels = pixels * (rows[:, None, :, None] & columns[:, None, None, :])
        maps = self.backbone(pixels.to(self.dtype, memory_format=self.memory_format))
        return list(maps.values())[-1:] if self.neck is None else self.neck(maps)

    @property
    def levels(self) -> tuple[FeatureInfo, ...]:
        """Channels and strides of the feature maps."""
        return tuple(self.backbone.levels.values())[-1:] if self.neck is None else self.neck.levels

    @property
    def proposals(self) -> ProposalSource:
        """Where the proposals come from, as the options declare it."""
        return self.options.proposals

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the network's input."""
        return next(chain(self.backbone.parameters(), self.parameters())).dtype

    def fp32_modules(self) -> tuple[nn.Module, ...]:
        """Return the modules that keep float32 weights when the others are converted to bf16 for prediction."""
        return ()

    def to_memory_format(self, memory_format: torch.memory_format) -> Self:
        """Use a memory format for the weights and the pixels; results stay the same."""
        self.memory_format = memory_format
        return self.to(memory_format=memory_format)


def known_targets(targets: Targets, num_classes: int) -> Targets:
    """Mask out targets with non-finite boxes or invalid labels, which readers already reject.

    A batch without ground truths gets one padding entry, as the collate function adds, so that G is never 0.
    """
    if not targets.boxes.shape[1]:
        count = len(targets.boxes)
        empty = targets.valid.new_zeros(count, 1)
        masks = None if targets.masks is None else targets.masks.new_zeros(count, 1, *targets.masks.shape[2:])
        boxes, labels = targets.boxes.new_zeros(count, 1, 4), targets.labels.new_zeros(count, 1)
        targets = Targets(boxes, labels, empty, empty, masks)
    known = (targets.labels >= 0) & (targets.labels < num_classes)
    boxes, valid = finite_boxes(targets.boxes, targets.valid & known)
    return replace(targets, boxes=boxes, labels=targets.labels.clamp(0, num_classes - 1), valid=valid)


def finite_boxes(
    boxes: Float[Tensor, "B n 4"], valid: Bool[Tensor, "B n"]
) -> tuple[Float[Tensor, "B n 4"], Bool[Tensor, "B n"]]:
    """Turn boxes with NaN or infinity into padding; RoIAlign on the CPU crashes on them."""
    finite = valid & boxes.isfinite().all(dim=-1)
    return boxes.where(finite[..., None], 0.0), finite
