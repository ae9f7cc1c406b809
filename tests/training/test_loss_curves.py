"""Fifty steps of each model give the losses of the last release.

The losses are in loss_curves.json. An intended change is noted in the CHANGELOG, and the file is written again with

    python tests/training/test_loss_curves.py
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Callback, LightningDataModule, Trainer, seed_everything
from torch.utils.data import DataLoader

from detect.backbones import LeNetOptions
from detect.config import TrainingOptions
from detect.models import (
    CropOptions,
    FasterRCNNOptions,
    FastRCNNOptions,
    ProposalCounts,
    RCNNOptions,
    RegionHeadOptions,
    RPNOptions,
    build_detector,
)
from detect.structures import Batch, Images, Proposals, Targets
from detect.training.module import DetectorModule

CURVES = Path(__file__).with_name("loss_curves.json")
SIDE, GROUND_TRUTHS, PROPOSALS = 32, 3, 30
RTOL = 1e-4
"""A hundred times what other kernels (SSE, AVX2), other numbers of threads, and weights that differ by a millionth part
change in fifty steps: 1e-6 at most. A learning rate that differs by a hundredth is far above it."""
COUNTS = ProposalCounts(pre_nms_top_k=24, post_nms_top_k=20)
# All other options have their defaults, so the test notices changed defaults, too.
MODELS = {
    "rcnn": RCNNOptions(
        backbone=LeNetOptions(),
        crop=CropOptions(size=32, context=2),
        region_head=RegionHeadOptions(batch_size_per_image=16, delta_weights=(1, 1, 1, 1)),
    ),
    "fast_rcnn": FastRCNNOptions(
        backbone=LeNetOptions(),
        neck=None,
        region_head=RegionHeadOptions(
            batch_size_per_image=16, negative_iou_min=0.1, delta_weights=None, smooth_l1_beta=1.0
        ),
    ),
    "faster_rcnn": FasterRCNNOptions(
        backbone=LeNetOptions(),
        neck=None,
        rpn=RPNOptions(
            anchor_sizes=(12,), anchor_ratios=(1.0,), batch_size_per_image=32, training=COUNTS, testing=COUNTS
        ),
        region_head=RegionHeadOptions(batch_size_per_image=16),
    ),
}
TRAINING = TrainingOptions(epochs=10, warmup_steps=20, learning_rate=0.01, milestones=(6,), accelerator="cpu")


class Made(LightningDataModule):
    """Five batches of two images of noise, each with some coloured rectangles."""

    def __init__(self) -> None:
        super().__init__()
        self.batches = [made_batch(number) for number in range(5)]

    def train_dataloader(self) -> DataLoader[Batch]:
        return DataLoader(self.batches, batch_size=None, generator=torch.Generator())  # type: ignore[arg-type]


def made_batch(number: int) -> Batch:
    """The same numbers on every machine: NumPy's generator promises that, and no picture is decoded or resized."""
    rng = np.random.default_rng(number)
    pixels = rng.integers(0, 120, (2, 3, SIDE, SIDE), np.uint8)
    sides, labels = rng.integers(8, 18, (2, GROUND_TRUTHS, 2)), rng.integers(0, 2, (2, GROUND_TRUTHS))
    corners = rng.integers(0, SIDE - sides)
    ground_truths = np.concatenate([corners, corners + sides], axis=-1)
    for image in range(2):
        for (x1, y1, x2, y2), label in zip(ground_truths[image], labels[image], strict=True):
            pixels[image, label, y1:y2, x1:x2] += 130
    # Some proposals are near a ground truth, the others anywhere.
    near = np.repeat(ground_truths, 5, axis=1) + rng.integers(-3, 4, (2, 5 * GROUND_TRUTHS, 4))
    ends = np.sort(rng.integers(0, SIDE - 6, (2, PROPOSALS - 5 * GROUND_TRUTHS, 2, 2)), axis=2)
    anywhere = np.concatenate([ends[:, :, 0], ends[:, :, 1] + 6], axis=-1)
    proposals = np.concatenate([near, anywhere], axis=1).clip(0, SIDE)
    valid = torch.ones(2, PROPOSALS, dtype=torch.bool)
    return Batch(
        images=Images(torch.from_numpy(pixels), torch.full((2, 2), SIDE)),
        targets=Targets(
            torch.from_numpy(ground_truths).float(),
            torch.from_numpy(labels),
            torch.ones(2, GROUND_TRUTHS, dtype=torch.bool),
            torch.zeros(2, GROUND_TRUTHS, dtype=torch.bool),
        ),
        ids=torch.tensor([2 * number, 2 * number + 1]),
        scales=torch.ones(2, 2),
        proposals=Proposals(torch.from_numpy(proposals).float(), valid.float(), valid),
    )


class Recorder(Callback):
    """Each loss at each step."""

    def __init__(self) -> None:
        self.curves: dict[str, list[float]] = {}

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        for name, value in trainer.callback_metrics.items():
            self.curves.setdefault(name, []).append(float(f"{float(value):.7g}"))


def train(name: str, noise: float = 0.0) -> dict[str, list[float]]:
    """The curves of a model; with `noise`, from weights that differ by such a part of themselves."""
    seed_everything(TRAINING.seed, verbose=False)
    model, data, recorder = build_detector(MODELS[name], 2), Made(), Recorder()
    if noise:
        generator = torch.Generator().manual_seed(int(noise * 1e12))
        for parameter in model.parameters():
            parameter.data *= 1 + noise * torch.randn(parameter.shape, generator=generator)
    if model.rpn is not None:
        data.batches = [Batch(one.images, one.targets, one.ids, one.scales) for one in data.batches]
    if model.region_head.statistics is not None:
        pairs = [
            (
                batch.proposals.boxes[row],
                Targets(*(getattr(batch.targets, field)[row][None] for field in ("boxes", "labels", "valid", "crowd"))),
            )
            for batch in data.batches
            for row in range(len(batch))
            if batch.proposals is not None
        ]
        model.region_head.statistics.measure(pairs, model.region_head.box_coder, model.region_head.matcher)
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=TRAINING.epochs,
        callbacks=[recorder],
        gradient_clip_val=TRAINING.clip_norm,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(DetectorModule(model, TRAINING), datamodule=data)
    return recorder.curves


@pytest.mark.filterwarnings("ignore")  # Lightning's advice, and its own use of what torch deprecates
@pytest.mark.parametrize("name", MODELS)
def test_fifty_steps_are_those_of_the_last_release(name):
    expected, curves = json.loads(CURVES.read_text())[name], train(name)
    assert curves.keys() == expected.keys()
    for loss, values in curves.items():
        np.testing.assert_allclose(values, expected[loss], rtol=RTOL, err_msg=f"{name} {loss}")


@pytest.mark.parametrize("name", MODELS)
def test_the_curve_that_is_held_is_one_of_learning(name):
    classification = json.loads(CURVES.read_text())[name]["classification"]
    assert len(classification) == 50 and sum(classification[-10:]) < 0.85 * sum(classification[:10])


if __name__ == "__main__":
    torch.set_num_threads(1)
    CURVES.write_text(json.dumps({name: train(name) for name in MODELS}, indent=1) + "\n", encoding="utf-8")
