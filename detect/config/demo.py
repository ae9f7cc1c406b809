"""The experiment of `detect demo`: small enough for a laptop without a GPU."""

from __future__ import annotations

from pathlib import Path

from detect.backbones import ResNet
from detect.config import Config, FasterRCNNOptions, TrainingOptions
from detect.data.options import DataOptions
from detect.models import BoxOptions, HeadOptions, ProposalCounts, RPNOptions


def demo_config(root: Path) -> Config:
    """Faster R-CNN with ResNet-18 and FPN, from scratch, on the data set that `detect data shapes` makes."""
    model = FasterRCNNOptions(
        backbone=ResNet(depth=18, norm="batch", train_stages=5, fpn_channels=64, fpn_top=4),
        rpn=RPNOptions(
            anchor_sizes=(16, 32, 64, 96),
            training=ProposalCounts(500, 300),
            testing=ProposalCounts(300, 100),
        ),
        head=HeadOptions(convolutions=1, layers=1, channels=256),
        boxes=BoxOptions(samples=32),
    )
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
