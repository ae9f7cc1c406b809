"""Runs whose numbers go wrong in the second epoch."""

from dataclasses import replace
from unittest.mock import Mock

import pytest
import torch
from lightning import Trainer

from detect.backbones import LeNetOptions
from detect.config import TrainingOptions
from detect.data.datamodule import DetectionData
from detect.errors import UserError
from detect.models import BoxHeadOptions, TwoStage, build_detector
from detect.structures import Batch
from detect.training.callbacks import StopOnNaN
from detect.training.fit import fit
from detect.training.module import DetectorModule


def root_of_nothing(self, losses):
    """Adds 0 whose gradient is no number."""
    return losses | {"boxes": losses["boxes"] + (self.region_head.predictor.scores.weight.sum() * 0).sqrt()}


def infinite(self, losses):
    return {name: value * torch.inf for name, value in losses.items()}


@pytest.mark.parametrize(
    ("wrong", "training", "message"),
    [
        (
            root_of_nothing,
            {},
            "the gradient norm is nan on .* first in the gradient of region_head.predictor.scores.weight; ",
        ),
        (
            root_of_nothing,
            {"clip_norm": 1.0, "ema": 0.9},
            "the gradient norm is nan .* of region_head.predictor.scores.weight; ",
        ),
        (infinite, {"optimizer": "rmsprop"}, "the loss is inf on .* first in the loss rpn_objectness; "),
    ],
)
def test_numbers_that_go_wrong_end_the_run_and_spoil_nothing(changed, tmp_path, monkeypatch, wrong, training, message):
    config = changed({"val": "val"}, save_minutes=1e-9, **training)
    config = replace(config, model=replace(config.model, backbone=LeNetOptions(), neck=None, box_head=BoxHeadOptions()))
    loss, modules, before = TwoStage.loss, [], {}
    files = [tmp_path / "checkpoints" / name for name in ("best.ckpt", "last.ckpt")]

    def third(self, batch, index):
        if self.trainer.global_step == 2:
            before.update({file: file.read_bytes() for file in files})
            modules.append((self.model, {name: value.clone() for name, value in self.model.named_parameters()}))
            monkeypatch.setattr(TwoStage, "loss", lambda self, *args: wrong(self, loss(self, *args)))
            self.loss = self.model.loss
        return step(self, batch, index)

    step = DetectorModule.training_step
    monkeypatch.setattr(DetectorModule, "training_step", third)
    with pytest.raises(UserError, match=rf"^step 3: {message}.*clip_norm 10$"):
        fit(config, DetectionData(config.data), tmp_path)
    assert {file: file.read_bytes() for file in files} == before
    (model, weights), *_ = modules
    assert all(torch.equal(value, weights[name]) for name, value in model.named_parameters())  # the step was left out


def test_a_layer_that_overflows_is_named(changed, tmp_path, monkeypatch):
    config = changed(precision="bf16")
    config = replace(config, model=replace(config.model, backbone=LeNetOptions(), neck=None, box_head=BoxHeadOptions()))

    def overflowing(options, num_classes):
        model = build_detector(options, num_classes)
        model.region_head.box_head.register_forward_hook(lambda layer, inputs, output: output * torch.inf)
        return model

    monkeypatch.setattr("detect.training.initial_weights.build_detector", overflowing)
    with pytest.raises(
        UserError, match=r"^step 1: the loss is nan .* first in the output of region_head\.predictor\.(scores|deltas);"
    ):
        fit(config, DetectionData(config.data), tmp_path)


def test_gradients_that_overflow_in_fp16_are_left_to_the_scaler():
    module, trainer = Mock(spec=DetectorModule), Mock(spec=Trainer, is_last_batch=False, global_step=0)
    module.training_options, module.gradient_norm = TrainingOptions(precision="fp16"), torch.tensor(torch.inf)
    StopOnNaN().on_train_batch_end(trainer, module, {"loss": torch.tensor(1.0)}, Mock(spec=Batch), 0)


def test_the_line_of_an_epoch_has_the_mean_of_its_losses(changed, tmp_path, monkeypatch, capsys):
    config, seen = changed(), []
    config = replace(config, model=replace(config.model, backbone=LeNetOptions(), neck=None, box_head=BoxHeadOptions()))

    def recorded(self, batch, index):
        result = step(self, batch, index)
        seen.append(float(result["loss"].detach()))
        return result

    step = DetectorModule.training_step
    monkeypatch.setattr(DetectorModule, "training_step", recorded)
    fit(config, DetectionData(config.data), tmp_path)
    lines = [line.split() for line in capsys.readouterr().err.splitlines() if line.startswith("epoch ")]
    shown = [float(line[line.index("loss") + 1]) for line in lines]
    assert len(seen) > len(shown) > 1
    means = torch.tensor(seen).reshape(len(shown), -1).mean(dim=1)
    torch.testing.assert_close(torch.tensor(shown), means, atol=6e-4, rtol=0)
