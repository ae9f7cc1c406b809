"""Images for comparing an exported model with its checkpoint."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from detect.config import Config
from detect.curation.shapes import draw_scene
from detect.data.decode import decode
from detect.data.read import splits
from detect.data.splits import Splits
from detect.errors import UserError

Image = UInt8[np.ndarray, "H W 3"]
"""RGB pixels."""

MAX_IMAGES = 20
"""Maximum number of images from a data set."""


def sample_images(config: Config, split: str | None, classes: Sequence[str]) -> list[Image]:
    """Return up to 20 images, evenly spaced, from a split of the config's data set.

    Args:
        config: config of the detector.
        split: name of the split; by default the test split of the config, else its val split.
        classes: class names of the detector.

    Raises:
        UserError: the split does not exist or has no images.
    """
    name = split or config.data.final
    if name is None:
        raise UserError("--split: the config has no test or val split; give the split to compare on")
    dataset = Splits(config.data, classes).read(name)
    records = dataset.records
    if not records:
        raise UserError(f"{dataset.source}: the split {name} has no images; give another one")
    indices = np.linspace(0, len(records) - 1, min(MAX_IMAGES, len(records))).round().astype(int)
    return [decode(records[index].path) for index in indices]


def has_data(config: Config) -> bool:
    """Return whether the data set of the config exists."""
    try:
        return all(splits(root) for root in config.data.roots)
    except UserError:
        return False


def synthetic_images() -> list[Image]:
    """Return drawn scenes of several sizes, for use without a data set."""
    rng = np.random.default_rng(0)
    return [draw_scene(rng, sides)[0] for sides in ((300, 500), (500, 700), (1000, 1200))]
