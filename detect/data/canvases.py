"""Few canvases for images of many shapes: a batch has one size, and the network sees few sizes in all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int
from torch.utils.data import Sampler

from detect.data.transforms import Resize

# The coarsest stride of the backbones: every feature map then divides the canvas.
MULTIPLE = 32

Size = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Item:
    """What a worker is asked for: an image, the canvas it shall fit, its scale, and the seed of its augmentation."""

    index: int
    resize: Resize
    canvas: Size
    seed: int


def plan_canvases(sizes: Int[np.ndarray, "n 2"], most: int) -> list[Size]:
    """At most `most` canvases, each a multiple of 32, for images of these heights and widths.

    Canvases start as the images' own sizes rounded up; the two whose union adds the least padding are merged until few
    enough remain.
    """
    rounded, counts = np.unique(-(-np.asarray(sizes) // MULTIPLE) * MULTIPLE, axis=0, return_counts=True)
    while len(rounded) > most:
        union = np.maximum(rounded[:, None], rounded[None])
        added = (union.prod(-1) - rounded.prod(-1)[:, None]) * counts[:, None]
        cost = (added + added.T).astype(float)
        np.fill_diagonal(cost, np.inf)
        a, b = np.unravel_index(cost.argmin(), cost.shape)
        rounded[a], counts[a] = union[a, b], counts[a] + counts[b]
        rounded, counts = np.delete(rounded, b, axis=0), np.delete(counts, b)
    return [(int(height), int(width)) for height, width in rounded]


def assign_canvases(sizes: Int[np.ndarray, "n 2"], canvases: Sequence[Size]) -> Int[np.ndarray, " n"]:
    """The smallest canvas that holds each image."""
    limits = np.asarray(canvases)
    fits = (np.asarray(sizes)[:, None] <= limits).all(-1)
    return np.where(fits, limits.prod(-1), np.iinfo(np.int64).max).argmin(1)


class CanvasBatchSampler(Sampler[list[Item]]):
    """Batches of images that share a canvas and a scale.

    In training the images are shuffled anew each epoch, each batch draws one of the scales, and the last batch of a
    canvas is filled up with images of that canvas drawn again, so that every image is seen and every batch is full.
    Several processes share such a batch, so that none waits for one whose canvas is larger, and W of them with batches
    of b see what one with a batch of W · b does, whose run they may go on with.
    In evaluation every image comes exactly once, on exactly one of the processes, at the first scale.

    Args:
        sizes: heights and widths of the image files.
        batch_size: images a batch, on each process.
        resizes: the scales to draw from.
        most_canvases: canvases for each scale.
        training: see above.
        seed: what is drawn depends on this, the epoch and nothing else.
        rank, world_size: this process, and how many there are.
    """

    def __init__(
        self,
        sizes: Sequence[Size],
        batch_size: int,
        resizes: Sequence[Resize],
        most_canvases: int,
        training: bool,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.batch_size, self.resizes, self.training = batch_size, tuple(resizes), training
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self._together = batch_size * world_size if training else batch_size
        self.epoch = 0
        self._begins = (0, 0)
        resized = [np.array([resize.size(*size) for size in sizes]) for resize in self.resizes]
        # Images are grouped as the first scale has them. At the other scales the same images share a canvas, so that
        # there are never more of these than were asked for.
        planned = assign_canvases(resized[0], plan_canvases(resized[0], most_canvases))
        self.groups = np.unique(planned, return_inverse=True)[1]
        self.canvases = [
            [_canvas(of_scale[self.groups == group]) for group in range(self.groups.max() + 1)] for of_scale in resized
        ]

    @property
    def sampler(self) -> CanvasBatchSampler:
        """Itself: Lightning looks here for `set_epoch`."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Chooses the shuffle of that epoch."""
        self.epoch = epoch

    def begin(self, epoch: int, batch: int) -> None:
        """Goes on with that epoch at that batch of this process: the batches before it do not come again."""
        self.epoch, self._begins = epoch, (epoch, batch)

    def __len__(self) -> int:
        """The batches of a whole epoch, also of one that is gone on with."""
        batches = int(np.ceil(np.bincount(self.groups) / self._together).sum())
        return batches if self.training else len(range(self.rank, batches, self.world_size))

    def __iter__(self) -> Iterator[list[Item]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        batches = [
            (group, chunk)
            for group in range(len(self.canvases[0]))
            for chunk in self._chunks(np.flatnonzero(self.groups == group), rng)
        ]
        if self.training:
            batches = [batches[place] for place in rng.permutation(len(batches))]
        scales = rng.integers(len(self.resizes), size=len(batches)) if self.training else np.zeros(len(batches), int)
        seeds = rng.integers(2**32, size=(len(batches), self._together))
        done = self._begins[1] if self.epoch == self._begins[0] else 0
        # Of a batch in training each process has its part; in evaluation batches are dealt out whole.
        first, step = (done, 1) if self.training else (self.rank, self.world_size)
        own = slice(self.rank * self.batch_size, (self.rank + 1) * self.batch_size) if self.training else slice(None)
        for place in range(first, len(batches), step):
            scale, (group, images) = scales[place], batches[place]
            yield [
                Item(int(image), self.resizes[scale], self.canvases[scale][group], int(seed))
                for image, seed in zip(images[own], seeds[place, own], strict=False)
            ]

    def _chunks(self, images: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
        if self.training:
            images = rng.permutation(images)
            images = np.concatenate([images, rng.choice(images, -len(images) % self._together)])
        return [images[start : start + self._together] for start in range(0, len(images), self._together)]


def _canvas(sizes: Int[np.ndarray, "n 2"]) -> Size:
    """The smallest canvas that holds all images of these heights and widths."""
    height, width = -(-sizes.max(axis=0) // MULTIPLE) * MULTIPLE
    return int(height), int(width)
