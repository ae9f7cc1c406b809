"""The experiment of `detect demo`, small enough for a laptop without a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from detect.backbones import FPNOptions, ResNetOptions
from detect.config.experiment import Config
from detect.config.training_options import TrainingOptions
from detect.data.options import DataOptions
from detect.models import (
    BoxHeadOptions,
    FasterRCNNOptions,
    MaskHeadOptions,
    MaskRCNNOptions,
    ProposalCounts,
    RegionHeadOptions,
    RPNOptions,
)


def demo_config(root: Path, masks: bool = False) -> Config:
    """Return the options of a small network, trained from scratch on the data set of `detect data shapes`.

    Args:
        root: the data set.
        masks: Mask R-CNN instead of Faster R-CNN, both with ResNet-18 and FPN.
    """
    detector: dict[str, Any] = {
        "backbone": ResNetOptions(depth=18, norm="batch", train_stages=5, last_stage=4),
        "neck": FPNOptions(channels=64),
        "rpn": RPNOptions(
            anchor_sizes=(16, 32, 64, 96),
            training=ProposalCounts(500, 300),
            testing=ProposalCounts(300, 100),
        ),
        "box_head": BoxHeadOptions(convolutions=1, layers=1, channels=256),
        "region_head": RegionHeadOptions(batch_size_per_image=32),
    }
    mask_head = MaskHeadOptions(convolutions=2, channels=64)
    model = MaskRCNNOptions(**detector, masks=mask_head) if masks else FasterRCNNOptions(**detector)
    data = DataOptions(
        root=root,
        short_side=(96,),
        long_side=132,
        batch_size=2,
        eval_batch_size=8,
        workers=1,
    )
    training = TrainingOptions(
        epochs=5,
        optimizer="adamw",
        learning_rate=7e-4,
        weight_decay=0.05,
        warmup_steps=100,
        schedule="cosine",
        clip_norm=10.0,
        precision="auto",
        validate_every=5,
    )
    return Config(model=model, data=data, training=training)
