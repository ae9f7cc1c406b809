"""Loaders of classification data.

Training takes a random crop of each image, resized to `size` (Szegedy et al. 2015, "Going deeper with convolutions",
§6). Evaluation resizes the short side to `resize` and takes the centre crop (Krizhevsky et al. 2012, §2), or the whole
image (Simonyan and Zisserman 2015, §3.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from lightning import LightningDataModule
from torch.utils import data

from detect.data.canvases import Item
from detect.data.classification_options import ClassificationDataOptions
from detect.data.decode import decode
from detect.data.digits import read_digits
from detect.data.formats.imagefolder import ImageClasses, read_imagefolder
from detect.data.loader import make_loader
from detect.data.transforms import Augmentation, Resize, Step, resize
from detect.errors import UserError
from detect.structures import ClassificationBatch

MAX_ASPECT_RATIO = 8
"""Long side by short side of a whole image; the ends of longer images are left out."""
Sample = tuple[UInt8[np.ndarray, "H W 3"], int, int]
"""An image, its label and its index in the split."""
_NO_BOXES = np.empty((0, 4), np.float32)


class ClassificationData(LightningDataModule):
    """Splits of classification data; each is read and checked on first use, before the first training step.

    Args:
        options: location and transforms of the data.
        classes: classes of a trained model; by default the classes of the training split.
        seed: determines shuffles, crops and augmentations.
    """

    def __init__(self, options: ClassificationDataOptions, classes: Sequence[str] | None = None, seed: int = 0) -> None:
        super().__init__()
        self.options, self.seed = options, seed
        self._classes = tuple(classes) if classes is not None else None
        self._augmentation = Augmentation(_steps(options))
        self._splits: dict[str, ImageClasses] = {}

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the labels 0 … C-1."""
        if self._classes is None:
            self._classes = self.split(self.options.train).classes
        return self._classes

    def split(self, name: str) -> ImageClasses:
        """Return a split by its name; it is read once, and its labels are indices into `classes`."""
        if name not in self._splits:
            # The training split determines the classes, because another split may lack some.
            dataset = self._read(name, self._classes if name == self.options.train else self.classes)
            self._splits[name] = self._splits[dataset.split] = dataset  # by the requested and the actual name
        return self._splits[name]

    @property
    def train(self) -> ImageClasses:
        """Training split."""
        return self.split(self.options.train)

    @property
    def val(self) -> ImageClasses | None:
        """Validation split, which selects the best checkpoint."""
        return None if self.options.val is None else self.split(self.options.val)

    def train_dataloader(self) -> data.DataLoader:
        """Return shuffled, cropped and augmented batches; the last one is filled with randomly drawn images."""
        return self._loader(self.train, self.options.batch_size, self._augmentation)

    def val_dataloader(self) -> data.DataLoader | list:
        """Return the loader of the validation split, or an empty list."""
        return [] if self.val is None else self.eval_loader(self.val)

    def eval_loader(self, dataset: ImageClasses, whole: bool = False) -> data.DataLoader:
        """Return batches of centre crops, or whole images one by one; each image occurs once, on one process."""
        return self._loader(dataset, 1 if whole else self.options.eval_batch_size, None, whole)

    def _read(self, name: str, classes: Sequence[str] | None) -> ImageClasses:
        if self.options.dataset == "digits":
            return read_digits(name, classes)
        options = self.options
        return read_imagefolder(options.root, name, classes, options.skip_unreadable, options.follow_links)

    def _loader(
        self, dataset: ImageClasses, batch_size: int, augmentation: Augmentation | None, whole: bool = False
    ) -> data.DataLoader[ClassificationBatch]:
        side = self.options.size
        return make_loader(
            _ClassificationImages(dataset, self.options, augmentation, whole),
            sizes=[(side, side)] * len(dataset),  # all images of a batch have one size: one canvas and one scale
            resizes=[Resize(side, side)],
            canvases=1,
            batch_size=batch_size,
            collate=collate,
            workers=self.options.workers,
            seed=self.seed,
            trainer=self.trainer if augmentation is not None else None,
            training=augmentation is not None,
        )


class _ClassificationImages(data.Dataset):
    """Decoded images, cropped to the network's size, or whole."""

    def __init__(
        self,
        dataset: ImageClasses,
        options: ClassificationDataOptions,
        augmentation: Augmentation | None,
        whole: bool,
    ) -> None:
        self.dataset, self.options, self.augmentation, self.whole = dataset, options, augmentation, whole

    def __getitem__(self, item: Item) -> Sample:
        image, size = self.dataset.images[item.index], self.options.size
        if isinstance(image, Path):
            image = decode(image)
        if self.whole:
            return whole_image(image, self.options.resize), int(self.dataset.labels[item.index]), item.index
        if self.augmentation is None or self.options.crop is None:
            image = centre_crop(image, size, self.options.resize)
        if self.augmentation is not None:
            try:
                image = self.augmentation(image, _NO_BOXES, item.seed).image
            except UserError as error:
                raise UserError(f"{self.dataset.name(item.index)}: {error}") from error
            if image.shape[:2] != (size, size):
                height, width = image.shape[:2]
                raise UserError(
                    f"data.augment: makes images of {height} × {width}, but data.size is {size}; leave "
                    "out the transforms that crop or resize (data.crop does that)"
                )
        return image, int(self.dataset.labels[item.index]), item.index


def centre_crop(image: UInt8[np.ndarray, "h w 3"], size: int, short_side: int) -> UInt8[np.ndarray, "size size 3"]:
    """Return the centre `size` × `size` of an image whose short side is resized to `short_side`.

    The image is cropped before resizing, so that a long thin image does not become huge. Papers use the reverse order;
    the results differ by the rounding to whole pixels of the file.
    """
    height, width = image.shape[:2]
    side = max(1, round(min(height, width) * size / short_side))
    top, left = (height - side) // 2, (width - side) // 2
    return resize(image[top : top + side, left : left + side], (size, size))


def whole_image(image: UInt8[np.ndarray, "h w 3"], short_side: int) -> UInt8[np.ndarray, "H W 3"]:
    """Return an image whose short side is resized to `short_side`; of one longer than 8:1, the middle."""
    longest = MAX_ASPECT_RATIO * min(image.shape[:2])
    top, left = (max(0, side - longest) // 2 for side in image.shape[:2])
    image = image[top : top + longest, left : left + longest]
    height, width = image.shape[:2]
    return resize(image, Resize(short_side, MAX_ASPECT_RATIO * short_side).size(height, width))


def collate(samples: Sequence[Sample]) -> ClassificationBatch:
    """Return a batch with channels last in memory, as OpenCV decodes and the network expects."""
    images, labels, ids = zip(*samples, strict=True)
    return ClassificationBatch(
        images=torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2),
        labels=torch.tensor(labels),
        ids=torch.tensor(ids),
    )


def _steps(options: ClassificationDataOptions) -> list[Step]:
    """Return the random crop to the network's size, followed by the other augmentations."""
    if options.crop is None:
        return list(options.augment)
    # Area averaging when shrinking, as in evaluation: the default of albumentations would skip pixels.
    arguments = {"scale": options.crop.scale, "ratio": options.crop.ratio, "area_for_downscale": "image"}
    return [{"RandomResizedCrop": {"size": (options.size, options.size), **arguments}}, *options.augment]
