"""Collate function: pads the images of a batch to one canvas and their ground truths to one length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64, UInt8

from detect.data.canvases import Size
from detect.errors import UserError
from detect.structures import Batch, Images, Proposals, Targets


@dataclass(frozen=True, slots=True)
class Sample:
    """One image at the network's scale, with boxes in pixels of this image."""

    id: int
    image: UInt8[np.ndarray, "h w 3"]
    boxes: Float32[np.ndarray, "n 4"]
    labels: Int64[np.ndarray, " n"]
    crowd: Bool[np.ndarray, " n"]
    scale: tuple[float, float]
    """Pixels of this image per pixel of the file, along x and along y."""
    canvas: Size
    proposals: Float32[np.ndarray, "r 4"] | None = None
    """Boxes from a proposal store, best first."""
    masks: UInt8[np.ndarray, "n M M"] | None = None
    """Mask of each box in a grid over the box, see `Targets`."""
    closing: bool = False
    """See `Batch.closing`."""


def collate(samples: Sequence[Sample], max_objects: int, max_proposals: int = 0) -> Batch:
    """Return a padded batch.

    Ground truths are padded to a length of `padded_lengths`, so that only a few shapes occur. The best `max_proposals`
    proposals are used, padded to that length.

    Raises:
        UserError: an image has more than `max_objects` ground truths; none is dropped silently.
    """
    count, (height, width) = len(samples), samples[0].canvas
    # Channels last in memory, as OpenCV decodes and the network expects.
    pixels = np.zeros((count, height, width, 3), np.uint8)
    length = _padded_length(samples, max_objects)
    boxes, labels = np.zeros((count, length, 4), np.float32), np.zeros((count, length), np.int64)
    valid, crowd = np.zeros((count, length), bool), np.zeros((count, length), bool)
    for row, sample in enumerate(samples):
        h, w = sample.image.shape[:2]
        pixels[row, :h, :w] = sample.image
        n = len(sample.boxes)
        boxes[row, :n], labels[row, :n], crowd[row, :n] = sample.boxes, sample.labels, sample.crowd
        valid[row, :n] = True
    sizes = torch.tensor([sample.image.shape[:2] for sample in samples])
    return Batch(
        images=Images(torch.from_numpy(pixels).permute(0, 3, 1, 2), sizes),
        targets=replace(
            Targets(*(torch.from_numpy(array) for array in (boxes, labels, valid, crowd))),
            masks=_pad_masks(samples, length),
        ),
        ids=torch.tensor([sample.id for sample in samples]),
        scales=torch.tensor([sample.scale for sample in samples], dtype=torch.float32),
        proposals=_pad_proposals(samples, max_proposals),
        closing=torch.tensor(samples[0].closing),
    )


def _pad_masks(samples: Sequence[Sample], length: int) -> UInt8[torch.Tensor, "B G M M"] | None:
    """Return the padded masks, or None if the samples have none."""
    if samples[0].masks is None:
        return None
    masks = torch.zeros(len(samples), length, *samples[0].masks.shape[1:], dtype=torch.uint8)
    for row, sample in enumerate(samples):
        assert sample.masks is not None
        masks[row, : len(sample.masks)] = torch.from_numpy(sample.masks)
    return masks


def _pad_proposals(samples: Sequence[Sample], length: int) -> Proposals | None:
    """Return the padded proposals, or None if the samples have none.

    Selective search ranks its proposals without scores; the scores are set to 1.
    """
    lists = [sample.proposals[:length] for sample in samples if sample.proposals is not None]
    if not lists:
        return None
    boxes, valid = torch.zeros(len(samples), length, 4), torch.zeros(len(samples), length, dtype=torch.bool)
    for row, proposals in enumerate(lists):
        boxes[row, : len(proposals)], valid[row, : len(proposals)] = torch.from_numpy(proposals), True
    return Proposals(boxes, valid.float(), valid)


def _padded_length(samples: Sequence[Sample], max_objects: int) -> int:
    fullest = max(samples, key=lambda sample: len(sample.boxes))
    if len(fullest.boxes) > max_objects:
        raise UserError(
            f"image {fullest.id}: {len(fullest.boxes)} objects, but data.max_objects is {max_objects}; raise it"
        )
    return next(length for length in padded_lengths(max_objects) if length >= len(fullest.boxes))


def padded_lengths(max_objects: int) -> list[int]:
    """Return the lengths to which ground truths are padded: 8, 32, 128 … up to the first that holds `max_objects`."""
    lengths = [8]
    while lengths[-1] < max_objects:
        lengths.append(4 * lengths[-1])
    return lengths
