"""Canvases: the common size of all images in a batch. A run has only a few sizes in total."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int
from torch.utils.data import Sampler

from detect.data.transforms import Resize

SIZE_DIVISIBILITY = 32
"""Height and width of a canvas are multiples of the coarsest stride of the backbones."""

Size = tuple[int, int]
"""Height and width."""


@dataclass(frozen=True, slots=True)
class Item:
    """Request to a worker: index, scale, canvas and augmentation seed of an image."""

    index: int
    resize: Resize
    canvas: Size
    seed: int
    closing: bool = False
    """True in the last epochs, whose images are not combined with others."""


def enclosing_canvas(sizes: Int[np.ndarray, "n 2"] | Sequence[Size]) -> Size:
    """Return the smallest canvas that holds images of these heights and widths."""
    height, width = -(-np.asarray(sizes).max(axis=0) // SIZE_DIVISIBILITY) * SIZE_DIVISIBILITY
    return int(height), int(width)


def plan_canvases(sizes: Int[np.ndarray, "n 2"], max_canvases: int) -> list[Size]:
    """Return at most `max_canvases` canvases that hold images of these heights and widths.

    The canvases start as the image sizes, rounded up. Then the two canvases whose union adds the least padding are
    merged, until few enough remain.
    """
    rounded, counts = np.unique(
        -(-np.asarray(sizes) // SIZE_DIVISIBILITY) * SIZE_DIVISIBILITY, axis=0, return_counts=True
    )
    while len(rounded) > max_canvases:
        union = np.maximum(rounded[:, None], rounded[None])
        added = (union.prod(-1) - rounded.prod(-1)[:, None]) * counts[:, None]
        cost = (added + added.T).astype(float)
        np.fill_diagonal(cost, np.inf)
        a, b = np.unravel_index(cost.argmin(), cost.shape)
        rounded[a], counts[a] = union[a, b], counts[a] + counts[b]
        rounded, counts = np.delete(rounded, b, axis=0), np.delete(counts, b)
    return [(int(height), int(width)) for height, width in rounded]


def assign_canvases(sizes: Int[np.ndarray, "n 2"], canvases: Sequence[Size]) -> Int[np.ndarray, " n"]:
    """Return the index of the smallest canvas that holds each image."""
    limits = np.asarray(canvases)
    fits = (np.asarray(sizes)[:, None] <= limits).all(-1)
    return np.where(fits, limits.prod(-1), np.iinfo(np.int64).max).argmin(1)


class CanvasBatchSampler(Sampler[list[Item]]):
    """Batches of images that share a canvas and a scale.

    In training the images are shuffled in each epoch, and each batch draws one of the scales. The last batch of a
    canvas is filled with randomly drawn images of the same canvas, so that every image is seen and every batch is full.
    Several processes share each global batch, so that none waits for a larger canvas of another. W processes with
    batch size b therefore see the same batches as one process with batch size W · b, and can resume its run.

    In evaluation every image occurs exactly once, on exactly one process, at the first scale.

    Args:
        sizes: heights and widths of the image files.
        batch_size: batch size per process.
        resizes: the scales to draw from.
        max_canvases: maximum number of canvases per scale.
        training: shuffle, draw scales and fill the batches.
        seed: determines, with the epoch, all random numbers.
        rank: index of this process.
        world_size: number of processes.
        closing_from: first of the closing epochs, whose items say so; None for none.
    """

    def __init__(
        self,
        sizes: Int[np.ndarray, "n 2"] | Sequence[Size],
        batch_size: int,
        resizes: Sequence[Resize],
        max_canvases: int,
        training: bool,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        closing_from: int | None = None,
    ) -> None:
        self.batch_size, self.resizes, self.training = batch_size, tuple(resizes), training
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self._global_batch_size = batch_size * world_size if training else batch_size
        self.closing_from, self.epoch = closing_from, 0
        self._resume_epoch, self._resume_batch = 0, 0
        different, place = np.unique(np.asarray(sizes), axis=0, return_inverse=True)
        resized = [np.array([resize.size(*size) for size in different.tolist()])[place] for resize in self.resizes]
        # Images are grouped by their canvas at the first scale. The groups are the same at the other scales, so that
        # no scale has more canvases than requested.
        planned = assign_canvases(resized[0], plan_canvases(resized[0], max_canvases))
        self.groups = np.unique(planned, return_inverse=True)[1]
        self.canvases = [
            [enclosing_canvas(at_scale[self.groups == group]) for group in range(self.groups.max() + 1)]
            for at_scale in resized
        ]

    @property
    def sampler(self) -> CanvasBatchSampler:
        """This object, because Lightning calls `sampler.set_epoch`."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Select the shuffle of an epoch."""
        self.epoch = epoch

    def resume_at(self, epoch: int, batch: int) -> None:
        """Resume within an epoch at batch `batch` of this process; earlier batches are skipped."""
        self.epoch = self._resume_epoch = epoch
        self._resume_batch = batch

    def __len__(self) -> int:
        """Return the number of batches of a whole epoch, even when resuming within an epoch."""
        batches = int(np.ceil(np.bincount(self.groups) / self._global_batch_size).sum())
        return batches if self.training else len(range(self.rank, batches, self.world_size))

    def __iter__(self) -> Iterator[list[Item]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        batches = [
            (group, chunk)
            for group in range(len(self.canvases[0]))
            for chunk in self._chunks(np.flatnonzero(self.groups == group), rng)
        ]
        if self.training:
            batches = [batches[index] for index in rng.permutation(len(batches))]
        scales = rng.integers(len(self.resizes), size=len(batches)) if self.training else np.zeros(len(batches), int)
        seeds = rng.integers(2**32, size=(len(batches), self._global_batch_size))
        done = self._resume_batch if self.epoch == self._resume_epoch else 0
        closing = self.closing_from is not None and self.epoch >= self.closing_from
        # In training each process takes its part of every batch; in evaluation it takes whole batches.
        first, step = (done, 1) if self.training else (self.rank, self.world_size)
        own = slice(self.rank * self.batch_size, (self.rank + 1) * self.batch_size) if self.training else slice(None)
        for index in range(first, len(batches), step):
            scale, (group, images) = scales[index], batches[index]
            yield [
                Item(int(image), self.resizes[scale], self.canvases[scale][group], int(seed), closing)
                for image, seed in zip(images[own], seeds[index, own], strict=False)
            ]

    def _chunks(self, images: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
        size = self._global_batch_size
        if self.training:
            images = rng.permutation(images)
            images = np.concatenate([images, rng.choice(images, -len(images) % size)])
        return [images[start : start + size] for start in range(0, len(images), size)]
