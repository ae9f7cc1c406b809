"""Loaders of detection data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from lightning import LightningDataModule
from torch.utils import data

from detect.data.canvases import Item
from detect.data.collate import Sample, collate
from detect.data.dataset import Dataset
from detect.data.decode import decode
from detect.data.defects import refuse_without_boxes
from detect.data.division import Division
from detect.data.limits import refuse_crowded, refuse_losses, refuse_without_masks, try_augmentation
from detect.data.loader import make_loader
from detect.data.masks import MASK_SIZE, Bitmaps, crops, refit
from detect.data.mosaic import Combination, Picture
from detect.data.options import DataOptions
from detect.data.records import columns
from detect.data.splits import Divide, Splits
from detect.data.transforms import Augmentation, Augmented, Resize, resize
from detect.errors import UserError
from detect.proposals.store import ProposalStore, digest
from detect.structures import Batch


class DetectionData(LightningDataModule):
    """Splits of a detection data set; each is read and checked on first use, before the first training step.

    Args:
        options: location and transforms of the data.
        classes: classes of a trained model; by default the classes of the data.
        seed: determines shuffles, augmentations and a new division of the training split.
        divide: as for `Splits`.
        masks: load the masks of the objects.
    """

    def __init__(
        self,
        options: DataOptions,
        classes: Sequence[str] | None = None,
        seed: int = 0,
        divide: Divide | None = None,
        masks: bool = False,
    ) -> None:
        super().__init__()
        self.options, self.seed, self.masks = options, seed, masks
        self.closing_from: int | None = None
        """First of the closing epochs of training, set by the training loop."""
        self._splits = Splits(options, classes, seed, divide, masks)
        self._augmentation = Augmentation(options.augment)
        self._combination = Combination(options.mosaic, options.mixup)
        self._resizes = [Resize(*sides) for sides in options.train_sides]
        self._digests: dict[Path, bytes] = {}

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the labels 0 … C-1."""
        return self._splits.classes

    @property
    def division(self) -> Division | None:
        """Division of the training split, or None."""
        return self._splits.division

    def split(self, name: str) -> Dataset:
        """Return a split by its name, see `Splits.read`; it is read once, and its labels are indices into `classes`.

        Raises:
            UserError: the split cannot be read, or an image has more than `max_objects` boxes.
        """
        dataset = self._splits.read(name)
        refuse_crowded(dataset, self.options.max_objects)
        self._digest(dataset)
        return dataset

    @cached_property
    def train(self) -> Dataset:
        """Training split. Raise `UserError` if it has no box, has lost most of them, or cannot be augmented."""
        classes = self.classes
        dataset = self.split("train" if self.division else str(self.options.split_name("train")))
        assert dataset.classes == classes
        refuse_without_boxes(dataset)
        if self.masks:
            refuse_without_masks(dataset)
        refuse_losses(dataset)
        refuse_crowded(dataset, self.options.max_objects, self._combination.most)
        try_augmentation(dataset, self._augmentation, self.seed)
        return dataset

    @property
    def val(self) -> Dataset | None:
        """Validation split, which selects the best checkpoint."""
        self.classes  # noqa: B018  determined by the training split, which must be read first
        name = self.options.split_name("val")
        if name is None:
            return None
        dataset = self.split(name)
        refuse_losses(dataset)
        return dataset

    def train_dataloader(self) -> data.DataLoader:
        """Return shuffled, augmented, full batches."""
        return self._loader(self.train, self.options.batch_size, self._resizes, self._augmentation)

    def val_dataloader(self) -> data.DataLoader | list:
        """Return the loader of the validation split, or an empty list."""
        return [] if self.val is None else self.eval_loader(self.val)

    def eval_loader(self, dataset: Dataset) -> data.DataLoader:
        """Return batches without augmentation; each image of the split occurs once, on one of the processes."""
        batch_size = self.options.eval_batch_size or (8 if torch.cuda.is_available() else 1)
        return self._loader(dataset, batch_size, [Resize.for_evaluation(self.options)], None)

    def proposals_of(self, dataset: Dataset) -> Iterator[Float32[np.ndarray, "n 4"]]:
        """Yield the best `max_proposals` proposals of each image, xyxy in pixels of the file, best first."""
        assert self.options.proposals is not None
        with closing(ProposalStore(self.options.proposals)) as store:
            for record in dataset.records:
                yield store.boxes(self._digests[record.path])[: self.options.max_proposals]

    def _digest(self, dataset: Dataset) -> None:
        """Compute the digests that identify images in the proposal store. Raise `UserError` if the store lacks any."""
        if self.options.proposals is None:
            return
        paths = [record.path for record in dataset.records if record.path not in self._digests]
        if not paths:
            return
        with ThreadPoolExecutor() as pool:
            digests = dict(zip(paths, pool.map(digest, paths), strict=True))
        with closing(ProposalStore(self.options.proposals)) as store:
            if missing := store.missing(digests):
                sources = " ".join(map(str, dataset.folders))
                raise UserError(
                    f"{store.path}: no proposals for {len(missing)} new or changed images of {dataset.source} "
                    f"{dataset.split}, first {missing[0]}; run detect propose {sources} --out {store.path}"
                )
        self._digests |= digests

    def _loader(
        self, dataset: Dataset, batch_size: int, resizes: Sequence[Resize], augmentation: Augmentation | None
    ) -> data.DataLoader[Batch]:
        if not len(dataset):
            raise UserError(f"{dataset.source}: the split {dataset.split} has no images; name another one")
        return make_loader(
            DetectionImages(
                dataset,
                augmentation,
                self.options.proposals,
                self._digests,
                self.masks,
                None if augmentation is None else self._combination,
            ),
            sizes=columns(dataset.records).sizes[:, ::-1],
            resizes=resizes,
            canvases=self.options.canvases,
            batch_size=batch_size,
            collate=partial(collate, max_objects=self.options.max_objects, max_proposals=self.options.max_proposals),
            workers=self.options.workers,
            seed=self.seed,
            trainer=self.trainer if augmentation is not None else None,
            training=augmentation is not None,
            closing_from=self.closing_from if augmentation is not None else None,
        )


MAX_BYTES = 2**28
"""Bytes of the bitmaps that are augmented at once, so that many objects in a large image do not fill the memory."""


class _Objects(NamedTuple):
    """Ground truths of an augmented image."""

    boxes: Float32[np.ndarray, "m 4"]
    kept: Int64[np.ndarray, " m"]
    """Index of each box among those of the picture."""
    masks: UInt8[np.ndarray, "m M M"] | None


class DetectionImages(data.Dataset):
    """Decoded, augmented and resized images with their boxes and, if given, their proposals.

    Args:
        dataset: the images and boxes.
        augmentation: applied before resizing, or None.
        proposals: path of the proposal store, or None.
        digests: the digest of each image in the store.
        masks: load the masks of the objects.
        combination: mosaic and mixup, applied before augmentation, or None.
    """

    def __init__(
        self,
        dataset: Dataset,
        augmentation: Augmentation | None,
        proposals: Path | None,
        digests: Mapping[Path, bytes],
        masks: bool = False,
        combination: Combination | None = None,
    ) -> None:
        self.dataset, self.augmentation, self.masks = dataset, augmentation, masks
        self.proposals, self.digests, self.combination = proposals, digests, combination

    @cached_property
    def store(self) -> ProposalStore | None:
        """Proposal store, opened by each worker separately on first use."""
        return None if self.proposals is None else ProposalStore(self.proposals)

    def __del__(self) -> None:
        if store := vars(self).get("store"):
            store.close()

    def __getitem__(self, item: Item) -> Sample:
        record = self.dataset.records[item.index]
        combined = None
        if self.combination is not None and not item.closing:
            combined = self.combination(item.index, self._read, len(self.dataset), item.canvas, item.seed)
        picture = combined or self._read(item.index)
        proposals = np.empty((0, 4), np.float32)
        if self.store is not None:
            proposals = self.store.boxes(self.digests[record.path])
        # Ground truths, proposals and masks are transformed together with the image.
        boxes = np.concatenate([picture.boxes, proposals])
        try:
            augmented, objects = self._augment(picture, boxes, item.seed)
        except UserError as error:
            raise UserError(f"{record.path}: {error}") from error
        size = augmented.image.shape[:2]  # a combined image already has the size of the canvas
        height, width = _fit(size if combined else item.resize.size(*size), item.canvas)
        scale = (width / augmented.image.shape[1], height / augmented.image.shape[0])
        factors = np.array(scale * 2, np.float32)
        return Sample(
            id=record.id,
            image=resize(augmented.image, (height, width)),
            boxes=objects.boxes * factors,
            labels=picture.labels[objects.kept],
            crowd=picture.crowd[objects.kept],
            scale=scale,
            canvas=item.canvas,
            proposals=None if self.store is None else augmented.boxes[augmented.kept >= len(picture.boxes)] * factors,
            masks=objects.masks,
            closing=item.closing,
        )

    def _read(self, index: int) -> Picture:
        """Return an image of the split as it is."""
        record = self.dataset.records[index]
        masks = record.masks or (None,) * len(record.boxes)
        bitmaps = Bitmaps(masks, record.height, record.width) if self.masks else None
        return Picture(decode(record.path), record.boxes, record.labels, record.crowd, bitmaps)

    def _augment(self, picture: Picture, boxes: Float32[np.ndarray, "n 4"], seed: int) -> tuple[Augmented, _Objects]:
        """Return the augmented image and boxes, and the ground truths, which are the first of the boxes.

        The masks are augmented in passes of at most `MAX_BYTES`, each with the image and all boxes and the same seed.
        """
        count, at_once = len(picture.boxes), max(1, MAX_BYTES // picture.image[..., 0].size)
        augmented = self._augment_rows(picture, boxes, seed, range(min(count, at_once)))
        is_gt = augmented.kept < count
        gt_boxes, kept = augmented.boxes[is_gt], augmented.kept[is_gt]
        if picture.masks is None:
            return augmented, _Objects(gt_boxes, kept, None)
        remains, masks = np.ones(len(kept), bool), np.zeros((len(kept), MASK_SIZE, MASK_SIZE), np.uint8)
        first = augmented.masks
        for start in range(0, count, at_once):
            rows = range(start, min(count, start + at_once))
            after = self._augment_rows(picture, boxes, seed, rows).masks if start else first
            assert after is not None
            own = np.flatnonzero((kept >= rows.start) & (kept < rows.stop))
            before = (picture.masks[row] for row in kept[own].tolist())
            bitmaps = [after[row - start] for row in kept[own].tolist()]
            gt_boxes[own], remains[own] = refit(picture.boxes[kept[own]], before, gt_boxes[own], bitmaps)
            masks[own] = crops(bitmaps, gt_boxes[own])
        return augmented, _Objects(gt_boxes[remains], kept[remains], masks[remains])

    def _augment_rows(self, picture: Picture, boxes: Float32[np.ndarray, "n 4"], seed: int, rows: range) -> Augmented:
        """Return the augmented image with all boxes and the masks of some of its objects."""
        masks = None
        if picture.masks is not None:
            masks = np.empty((len(rows), *picture.image.shape[:2]), np.uint8)
            for out, row in zip(masks, rows, strict=True):
                out[:] = picture.masks[row]
        if self.augmentation is None:
            return Augmented(picture.image, boxes, np.arange(len(boxes)), masks)
        return self.augmentation(picture.image, boxes, seed, masks)


def _fit(size: tuple[int, int], canvas: tuple[int, int]) -> tuple[int, int]:
    """Shrink a size into the canvas of its batch; augmentation may have rotated or stretched the image."""
    shrink = min(1.0, canvas[0] / size[0], canvas[1] / size[1])
    return max(1, int(size[0] * shrink)), max(1, int(size[1] * shrink))
