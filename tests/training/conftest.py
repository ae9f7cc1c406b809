"""A small data set, and the smallest experiment on it that goes through everything."""

from dataclasses import replace
from pathlib import Path

import pytest

from detect.backbones import ResNetOptions
from detect.config import Config, TrainingOptions
from detect.curation.shapes import make_shapes
from detect.data.options import DataOptions
from detect.models import BoxHeadOptions, FasterRCNNOptions, ProposalCounts, RegionHeadOptions, RPNOptions


@pytest.fixture(scope="session")
def shapes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shapes"
    return make_shapes(folder, images={"train": 4, "val": 2}, size=(64, 96), progress=False)


@pytest.fixture(scope="session")
def config(shapes) -> Config:
    """Two epochs of two steps, without validation."""
    counts = ProposalCounts(100, 20)
    return Config(
        model=FasterRCNNOptions(
            backbone=ResNetOptions(depth=18, norm="batch", train_stages=5),
            rpn=RPNOptions(anchor_sizes=(8, 16, 32, 48, 64), training=counts, testing=counts),
            box_head=BoxHeadOptions(layers=1, channels=32),
            region_head=RegionHeadOptions(batch_size_per_image=16),
        ),
        data=DataOptions(root=shapes, val=None, short_side=(64,), long_side=96, batch_size=2, workers=0, canvases=1),
        training=TrainingOptions(
            epochs=2, learning_rate=0.01, warmup_steps=0, milestones=(), accelerator="cpu", devices=1
        ),
    )


@pytest.fixture(scope="session")
def changed(config):
    """Makes the experiment with other values in its sections."""

    def change(data=(), **training) -> Config:
        return replace(config, data=replace(config.data, **dict(data)), training=replace(config.training, **training))

    return change
