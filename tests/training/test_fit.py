import csv
import logging
import math
import re
import signal
from dataclasses import replace
from pathlib import Path
from unittest import mock
from unittest.mock import Mock

import pytest
import torch
from lightning import seed_everything
from lightning.pytorch.plugins import MixedPrecision

from detect.checkpoint import load_checkpoint
from detect.config import AlternatingOptions, Config, load_config
from detect.curation.shapes import SHAPES
from detect.data.datamodule import DetectionData
from detect.data.division import Division, division_json
from detect.data.options import MosaicOptions
from detect.errors import UserError
from detect.evaluation.evaluator import Evaluator
from detect.models import TwoStage, build_detector
from detect.training.alternating import Alternating
from detect.training.fit import fit
from detect.training.joint import Joint
from detect.training.module import DetectorModule
from detect.training.processes import DDP
from detect.training.resume import check_division_kept

VALIDATED = {"val": "val"}


def run(config: Config, out: Path, **options) -> Path:
    return fit(config, DetectionData(config.data), out, **options)[0]


def saved(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def assert_equal_states(one: dict, other: dict, part: str = "") -> None:
    keys = {key for key in one if part in key}
    assert keys and keys == {key for key in other if part in key}
    for key in keys:
        assert torch.equal(one[key], other[key]), key


@pytest.fixture(scope="module")
def whole(changed, tmp_path_factory) -> Path:
    """The folder of an uninterrupted run, validated, with averaged weights."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    run(changed(VALIDATED, ema=0.5, schedule="cosine"), out)
    return out


def test_a_run_leaves_config_metrics_and_checkpoints(whole, changed):
    assert load_config(whole / "config.yaml") == changed(VALIDATED, ema=0.5, schedule="cosine")
    assert {path.name for path in (whole / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert list((whole / "tensorboard").iterdir())
    validations = [row for row in rows(whole) if row["AP"]]
    assert [row["epoch"] for row in validations] == ["0", "1"]
    assert all(0 <= float(row["AP"]) <= 1 and float(row["val_loss"]) > 0 for row in validations)


def test_a_checkpoint_tells_what_it_is(whole):
    card = saved(whole / "checkpoints" / "best.ckpt")["detect"]
    assert card["classes"] == [*SHAPES]
    assert card["category_ids"] == [1, 2, 3, 4]
    assert {"python", "detect", "torch", "torchvision", "lightning"} == set(card["versions"])
    checkpoint = load_checkpoint(whole / "checkpoints" / "best.ckpt")
    assert checkpoint.config == load_config(whole / "config.yaml") and not checkpoint.model.training


def test_a_run_that_goes_on_ends_where_the_whole_one_does(whole, changed, tmp_path, monkeypatch):
    # With a worker, though the whole run had none: it must not repeat the first epoch's batches.
    config = changed(VALIDATED | {"workers": 1}, ema=0.5, schedule="cosine")
    with monkeypatch.context() as patch:

        def stop_in_second_epoch(self) -> None:
            if self.current_epoch == 1:
                raise RuntimeError("the power went")

        patch.setattr(DetectorModule, "on_train_epoch_start", stop_in_second_epoch)
        with pytest.raises(RuntimeError, match="the power went"):
            run(config, tmp_path)
    run(config, tmp_path, resume=True)
    ours, theirs = (saved(folder / "checkpoints" / "last.ckpt") for folder in (tmp_path, whole))
    assert_equal_states(ours["current_model_state"], theirs["current_model_state"])
    assert_equal_states(ours["state_dict"], theirs["state_dict"])
    assert [row["AP"] for row in rows(tmp_path)] == [row["AP"] for row in rows(whole)]


@pytest.mark.parametrize(("ramp", "decays"), [(0, [0.75] * 3), (4, [0.75 * (1 - math.exp(-t / 4)) for t in (2, 3, 4)])])
def test_the_average_of_the_weights_is_kept(changed, tmp_path, monkeypatch, ramp, decays):
    seen = []
    weight = lambda module: module.model.region_head.predictor.scores.weight.detach().clone()  # noqa: E731
    monkeypatch.setattr(DetectorModule, "on_train_batch_end", lambda self, *_: seen.append(weight(self)))
    path = run(changed(ema=0.75, ema_ramp=ramp), tmp_path)
    average, *later = seen
    for decay, one in zip(decays, later, strict=True):
        average = decay * average + (1 - decay) * one
    assert len(seen) == 4
    torch.testing.assert_close(saved(path)["state_dict"]["model.region_head.predictor.scores.weight"], average)
    torch.testing.assert_close(load_checkpoint(path).model.region_head.predictor.scores.weight.detach(), average)


def test_the_model_is_told_of_closing_epochs(changed, tmp_path, monkeypatch):
    seen, losses = [], DetectorModule.losses

    def record(self, batch, loss):
        seen.append(bool(batch.closing))
        return losses(self, batch, loss)

    monkeypatch.setattr(DetectorModule, "losses", record)
    run(changed({"workers": 1, "mosaic": MosaicOptions()}, closing_epochs=1), tmp_path)
    assert seen == [False, False, True, True]


def test_the_last_checkpoint_is_of_the_last_epoch_though_it_was_not_validated(changed, tmp_path):
    best = run(changed(VALIDATED, validate_every=2, epochs=3), tmp_path)
    assert best.name == "best.ckpt" and saved(best)["epoch"] == 1
    assert saved(best.with_name("last.ckpt"))["epoch"] == 2


def test_only_validated_epochs_show_metrics(changed, tmp_path, capsys):
    run(changed(VALIDATED, validate_every=2, epochs=3), tmp_path)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("epoch ")]
    assert [("AP50" in line, "loss" in line) for line in lines] == [(False, True), (True, True), (False, True)]


def test_training_ends_when_the_figures_no_longer_rise(changed, tmp_path):
    run(changed(VALIDATED, patience=1, epochs=9, learning_rate=1e-9), tmp_path)
    assert [row["epoch"] for row in rows(tmp_path) if row["AP"]] == ["0", "1"]


def test_a_loss_that_is_no_number_ends_the_run_and_names_the_images(changed, tmp_path, monkeypatch):
    loss = TwoStage.loss
    monkeypatch.setattr(TwoStage, "loss", lambda *args: {name: one * torch.nan for name, one in loss(*args).items()})
    with pytest.raises(UserError, match=r"^step 1: the loss is nan on the images with ids (1, 2|2, 1), first in "):
        run(changed({"train": "val"}), tmp_path)


def test_the_gradient_is_clipped(changed, tmp_path):
    config = changed({"batch_size": 4}, epochs=1, clip_norm=0.01, momentum=0.0, weight_decay=0.0, learning_rate=2.0)
    trained = saved(run(config, tmp_path))
    seed_everything(config.training.seed, verbose=False)
    before = dict(build_detector(config.model, len(SHAPES)).named_parameters())
    moved = [trained["state_dict"][f"model.{name}"] - parameter.detach() for name, parameter in before.items()]
    assert trained["global_step"] == 1
    assert torch.cat([one.flatten() for one in moved]).norm().item() == pytest.approx(2.0 * 0.01, rel=1e-3)


def test_bf16_trains(changed, tmp_path):
    state = saved(run(changed(epochs=1, precision="bf16"), tmp_path))["state_dict"]
    assert all(value.isfinite().all() for value in state.values())
    assert {value.dtype for value in state.values()} == {torch.float32, torch.int64}


def test_the_loss_is_compiled_when_asked(changed, tmp_path, monkeypatch):
    asked, called = [], []

    def compile(function, **options):
        asked.append((function.__qualname__, options))
        return lambda *args: called.append(1) or function(*args)

    monkeypatch.setattr(torch, "compile", compile)
    run(changed(epochs=1, compile=True), tmp_path)
    options = {"fullgraph": True, "dynamic": False, "mode": None}
    assert asked == [("TwoStage.loss", options)] and len(called) == 2


def test_alternating_training_ends_in_one_backbone(changed, tmp_path):
    run(changed(VALIDATED, epochs=1, recipe=AlternatingOptions()), tmp_path)
    folders = (tmp_path / "step1", tmp_path / "step2", tmp_path / "step3", tmp_path)
    first, second, third, last = (saved(folder / "checkpoints" / "last.ckpt")["state_dict"] for folder in folders)
    name = "model.backbone.body.layer1.0.conv1.weight"
    assert not torch.equal(first[name], second[name])
    for state in (third, last):  # statistics of batch norms included
        assert_equal_states(second, state, part="model.backbone.")
    assert_equal_states(third, last, part="model.rpn.")
    assert_equal_states(second, third, part="model.region_head.box_head.")
    assert not torch.equal(first["model.rpn.deltas.bias"], third["model.rpn.deltas.bias"])
    assert not torch.equal(
        third["model.region_head.predictor.scores.bias"], last["model.region_head.predictor.scores.bias"]
    )
    assert any(row["AP"] for row in rows(tmp_path)) and (tmp_path / "checkpoints" / "best.ckpt").exists()


def test_the_second_step_of_alternating_training_still_needs_the_initial_weights(tmp_path):
    for step, needs in (("step1", True), ("step2", False)):
        (tmp_path / step / "checkpoints").mkdir(parents=True)
        (tmp_path / step / "checkpoints" / "last.ckpt").touch()
        assert Alternating.needs_no_weights(tmp_path) is not needs
    assert not Joint.needs_no_weights(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    assert Joint.needs_no_weights(tmp_path)


@pytest.mark.parametrize(("has", "chosen"), [(True, "bf16"), (False, "fp32")])
def test_the_precision_is_what_the_hardware_computes(changed, tmp_path, monkeypatch, has, chosen):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    modules = []
    monkeypatch.setattr("detect.training.loop.run_loop", lambda module, *_: modules.append(module))
    run(changed({"train": "val"}, precision="auto"), tmp_path)
    assert load_config(tmp_path / "config.yaml").training.precision == chosen
    assert modules[0].training_options.precision == modules[0].card["config"]["training"]["precision"] == chosen


def test_training_in_bf16_on_a_processor_without_is_told(changed, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr("detect.training.loop.run_loop", lambda *_: None)
    run(changed({"train": "val"}, precision="fp32"), tmp_path / "fp32")
    assert not caplog.messages
    run(changed({"train": "val"}, precision="bf16"), tmp_path / "bf16")
    assert [message for message in caplog.messages if "bf16" in message] == [
        "precision: this cpu emulates bf16, many times slower than fp32"
    ]


def test_of_epochs_with_equal_figures_the_last_is_the_best(changed, tmp_path, monkeypatch):
    monkeypatch.setattr(Evaluator, "compute", lambda self: {"AP": 0.0, "losses": {}})
    assert saved(run(changed(VALIDATED), tmp_path))["epoch"] == 1


def test_an_interrupted_run_is_told_from_a_finished_one_and_goes_on(changed, tmp_path, monkeypatch):
    config = changed(VALIDATED)
    with monkeypatch.context() as patch:
        patch.setattr(DetectorModule, "on_train_epoch_start", Mock(side_effect=KeyboardInterrupt))
        patch.setattr(signal, "signal", Mock())  # Lightning would leave this process deaf to Ctrl-C
        with pytest.raises(KeyboardInterrupt):
            run(config, tmp_path)
    assert (tmp_path / "config.yaml").exists() and not (tmp_path / "checkpoints").exists()
    assert saved(run(config, tmp_path, resume=True).with_name("last.ckpt"))["epoch"] == 1


def test_a_run_that_was_moved_keeps_its_best(changed, tmp_path, monkeypatch):
    values = iter([0.9, 0.5])
    monkeypatch.setattr(Evaluator, "compute", lambda self: {"AP": next(values), "losses": {}})
    run(changed(VALIDATED, epochs=1), tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")
    best = run(changed(VALIDATED, epochs=2), tmp_path / "there", resume=True)
    assert best == tmp_path / "there" / "checkpoints" / "best.ckpt" and saved(best)["epoch"] == 0


def test_a_run_goes_on_with_another_learning_rate(changed, tmp_path, caplog):
    caplog.set_level(logging.INFO, "detect")
    last = run(changed(epochs=1), tmp_path)
    before = saved(last)["state_dict"]
    other = {"learning_rate": 1e-12, "weight_decay": 0.5, "momentum": 0.0, "schedule": "constant"}
    run(changed({"short_side": (48,)}, epochs=2, **other), tmp_path, resume=True)
    after = saved(last)
    for group in after["optimizer_states"][0]["param_groups"]:
        assert group["lr"] == group["initial_lr"] == 1e-12 and group["momentum"] == 0
    assert after["lr_schedulers"][0]["base_lrs"] == [1e-12] * 3
    assert [group["weight_decay"] for group in after["optimizer_states"][0]["param_groups"]] == [0.5, 0, 0]
    name = "model.region_head.predictor.scores.weight"
    torch.testing.assert_close(after["state_dict"][name], before[name], rtol=0, atol=1e-9)
    assert [record.getMessage() for record in caplog.records if "resume" in record.getMessage()] == [
        f"--resume: {last} continues with data.short_side [48] (before: [64]), training.epochs 2 (before: 1), "
        "training.learning_rate 1e-12 (before: 0.01), training.momentum 0.0 (before: 0.9), "
        "training.weight_decay 0.5 (before: 0.0001), training.schedule constant (before: steps)"
    ]


@pytest.mark.parametrize(
    ("other", "problem"),
    [
        ({"optimizer": "adam"}, "began with training.optimizer sgd, not adam"),
        ({"ema": 0.9}, "began with training.ema null, not 0.9"),
    ],
)
def test_a_state_without_meaning_is_no_run_to_go_on_with(changed, tmp_path, other, problem):
    last = run(changed(epochs=1), tmp_path)
    before = (tmp_path / "config.yaml").read_text()
    remedy = f"to begin a new run from here, use --weights {last} and another --out"
    with pytest.raises(UserError, match=f"^--resume: {re.escape(f'{last} {problem}; {remedy}')}$"):
        run(changed(epochs=2, **other), tmp_path, resume=True)
    assert (tmp_path / "config.yaml").read_text() == before


def test_a_run_is_not_validated_on_images_that_it_has_trained_with(changed, tmp_path):
    last = run(changed(epochs=1), tmp_path)
    halves = Division("train", 0, {"val": 0.5}, ({"train": ("a.png",), "val": ("b.png",)},))
    check_division_kept(None, last, tmp_path)
    with pytest.raises(UserError, match=r"^--resume: .*last\.ckpt was trained with the whole training split.*--out$"):
        check_division_kept(halves, last, tmp_path)
    (tmp_path / "division.json").write_text(division_json(replace(halves, roots=("x",))))
    divided = replace(changed(epochs=1).data, val=0.5)
    card = replace(load_checkpoint(last).config, data=divided)
    with mock.patch("detect.training.resume.load_any", return_value=Mock(config=card)):
        check_division_kept(halves, last, tmp_path)
        others = replace(halves, parts=({"train": ("b.png",), "val": ("a.png",)},))
        with pytest.raises(UserError, match=r"was trained with another division, .*; leave out --data\.division"):
            check_division_kept(others, last, tmp_path)


def test_a_run_that_goes_on_forgets_the_steps_after_its_checkpoint(changed, tmp_path):
    run(changed(VALIDATED, epochs=1), tmp_path)
    before, steps = rows(tmp_path), 2
    assert saved(tmp_path / "checkpoints" / "last.ckpt")["global_step"] == steps
    with (tmp_path / "metrics.csv").open("a", newline="") as file:
        csv.DictWriter(file, before[0]).writerow(before[0] | {"step": steps, "AP": "0.777"})
    run(changed(VALIDATED, epochs=2), tmp_path, resume=True)
    values = [row["AP"] for row in rows(tmp_path) if row["AP"]]
    assert len(values) == 2 and "0.777" not in values


def test_a_validation_split_must_tell_the_best_epoch(changed, tmp_path, monkeypatch):
    data = DetectionData(changed(VALIDATED).data)
    columns = ("boxes", "labels", "crowd", "difficult", "areas")
    empty = [replace(one, **{name: getattr(one, name)[:0] for name in columns}) for one in data.val.records]
    few = data.val.records[:1]
    for records, training, message in (
        (empty, {}, r"the split val has no boxes, so it cannot select the best checkpoint; .*--data\.val"),
        (few, {"devices": 2}, r"the split val has batches for 1 of 2 processes; lower --data\.eval_batch_size or use"),
    ):
        monkeypatch.setitem(data._splits._read, "val", replace(data.val, records=tuple(records)))
        with pytest.raises(UserError, match=message):
            fit(changed(VALIDATED, **training), data, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_rpn_takes_no_proposals_of_a_store(changed, tmp_path):
    config, data = changed({"proposals": tmp_path / "store"}), DetectionData(changed().data)
    with pytest.raises(
        UserError, match=r"^data\.proposals: faster_rcnn does not use given proposals; leave the store out$"
    ):
        fit(config, data, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"accelerator": "gpu"}, r"^training\.accelerator: torch sees no GPU; choose cpu or auto$"),
        ({"precision": "fp16"}, r"^training\.precision: fp16 needs a CUDA device"),
    ],
)
def test_what_cannot_be_done_is_told_at_once(changed, tmp_path, monkeypatch, training, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 0)
    with pytest.raises(UserError, match=message):
        run(changed(**training), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_made_is_a_mistake(config, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file/run: Not a directory; choose another folder with --out"):
        run(config, tmp_path / "file" / "run")


def test_several_processes_validate_in_the_precision_of_one():
    strategy, module = DDP(), Mock()
    strategy.connect(module)
    strategy.precision_plugin = MixedPrecision("bf16-mixed", "cpu")
    module.validation_step.side_effect = lambda: torch.is_autocast_enabled("cpu")
    assert strategy.validation_step()
