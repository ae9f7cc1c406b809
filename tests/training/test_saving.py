"""An interrupted run continues at the very next batch, and ends bit for bit like an uninterrupted one."""

import csv
import random
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from detect.backbones import LeNetOptions
from detect.config import AlternatingOptions, Config
from detect.data.datamodule import DetectionData
from detect.data.options import MixupOptions, MosaicOptions
from detect.models import BoxHeadOptions, build_detector
from detect.training.fit import fit
from detect.training.module import DetectorModule
from detect.training.saving import interruptible

EVERY_STEP = 1e-9  # minutes


class KilledError(Exception):
    pass


def run(config: Config, out: Path, resume: bool = False) -> Path:
    return fit(config, DetectionData(config.data), out, resume)[0]


def checkpoints(out: Path) -> dict[str, object]:
    """Return the checkpoints' contents without the options that may change when a run continues."""
    contents = {str(path.relative_to(out)): torch.load(path, weights_only=True) for path in sorted(out.rglob("*.ckpt"))}
    for content in contents.values():
        content["detect"]["config"]["data"].pop("workers")
        content["detect"]["config"]["training"].pop("save_minutes")
    return contents


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def assert_equal_values(one: object, other: object, place: str = "") -> None:
    """Compare the contents of two checkpoints bit for bit."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), place
        for key in one:
            # The path of the folder, and Lightning's counters, which `set_position` replaces.
            if key not in ("dirpath", "best_model_path", "best_k_models", "kth_best_model_path", "loops"):
                assert_equal_values(one[key], other[key], f"{place}/{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), place
        for index, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_equal_values(a, b, f"{place}/{index}")
    elif isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype and torch.equal(one, other), place
    else:
        assert one == other, place


def assert_equal_runs(one: Path, other: Path) -> None:
    ours, theirs = checkpoints(one), checkpoints(other)
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert_equal_values(ours[name], theirs[name], name)
    assert rows(one) == rows(other)


@pytest.fixture(scope="module")
def longer(changed):
    """Two epochs of four steps, validated, with averaged weights, clipped gradients and a falling rate."""
    rotate = [{"HorizontalFlip": {"p": 0.5}}]

    def options(**more) -> Config:
        data = {"val": "val", "batch_size": 1, "augment": rotate, "eval_batch_size": 1} | more.pop("data", {})
        defaults = {"ema": 0.9, "schedule": "cosine", "clip_norm": 1.0, "save_minutes": EVERY_STEP}
        config = changed(data, **defaults | more)
        return replace(
            config, model=replace(config.model, backbone=LeNetOptions(), neck=None, box_head=BoxHeadOptions())
        )  # 1 MB a checkpoint

    return options


@pytest.fixture(scope="module")
def whole(longer, tmp_path_factory) -> Path:
    """The folder of an uninterrupted run."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    run(longer(), out)
    return out


def before(patch: pytest.MonkeyPatch, name: str, count: int, action: Callable[[], None]) -> None:
    """Call `action` before call number `count`, from 0, of a method of the module."""
    calls, function = iter(range(10**6)), getattr(DetectorModule, name)

    def counted(self, *args):
        if next(calls) == count:
            action()
        return function(self, *args)

    patch.setattr(DetectorModule, name, counted)


def die() -> None:
    raise KilledError


@pytest.mark.parametrize(
    ("place", "count", "workers"),
    [("training_step", 2, 2), ("training_step", 4, 0), ("validation_step", 1, 0), ("on_validation_epoch_end", 1, 0)],
)
def test_a_run_that_was_killed_ends_as_the_whole_one(whole, longer, tmp_path, monkeypatch, place, count, workers):
    config = longer(data={"workers": workers})
    with monkeypatch.context() as patch:
        before(patch, place, count, die)
        with pytest.raises(KilledError):
            run(config, tmp_path)
    run(config, tmp_path, resume=True)
    assert_equal_runs(tmp_path, whole)


@pytest.mark.parametrize(("count", "workers"), [(2, 2), (6, 0)])
def test_a_run_with_mosaics_that_was_killed_ends_as_the_whole_one(longer, tmp_path, monkeypatch, count, workers):
    """Killed in an epoch of mosaics, and in the closing one."""
    data = {"mosaic": MosaicOptions(), "mixup": MixupOptions()}
    ramp = {"closing_epochs": 1, "ema_ramp": 3, "final_lr_factor": 0.1, "warmup_steps": 3, "warmup_curve": "quadratic"}
    run(longer(data=data, **ramp), tmp_path / "whole")
    config = longer(data=data | {"workers": workers}, **ramp)
    with monkeypatch.context() as patch:
        before(patch, "training_step", count, die)
        with pytest.raises(KilledError):
            run(config, tmp_path / "run")
    run(config, tmp_path / "run", resume=True)
    assert_equal_runs(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize(
    ("place", "number", "steps"),
    [
        ("training_step", signal.SIGTERM, 2),
        ("validation_step", signal.SIGUSR1, 4),
        ("validation_step", signal.SIGINT, 4),
    ],
)
def test_a_signal_saves_and_ends_the_run(whole, longer, tmp_path, monkeypatch, place, number, steps):
    config, handlers = longer(save_minutes=None), [signal.getsignal(one) for one in (number, signal.SIGTERM)]
    with monkeypatch.context() as patch:
        before(patch, place, 1, lambda: signal.raise_signal(number))
        with pytest.raises(KeyboardInterrupt):
            run(config, tmp_path)
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == steps
    assert [signal.getsignal(one) for one in (number, signal.SIGTERM)] == handlers
    run(config, tmp_path, resume=True)
    assert_equal_runs(tmp_path, whole)


def test_a_signal_outside_of_the_loop_interrupts():
    with pytest.raises(KeyboardInterrupt), interruptible():
        signal.raise_signal(signal.SIGTERM)


def test_alternating_training_goes_on_in_its_step(longer, tmp_path, monkeypatch):
    config = longer(recipe=AlternatingOptions(), epochs=1)
    run(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        before(patch, "training_step", 2 * 4 + 2, die)  # the third step of training, the third of its batches
        with pytest.raises(KilledError):
            run(config, tmp_path / "run")
    assert (tmp_path / "run" / "step3" / "checkpoints").exists() and not (tmp_path / "run" / "checkpoints").exists()
    run(config, tmp_path / "run", resume=True)
    assert_equal_runs(tmp_path / "run", tmp_path / "whole")


def test_a_run_that_lost_patience_stays_at_its_end(longer, tmp_path):
    config = longer(patience=1, epochs=9, learning_rate=1e-9)
    first = rows(run(config, tmp_path).parents[1])
    run(config, tmp_path, resume=True)
    assert rows(tmp_path) == first and [row["epoch"] for row in first if row["AP"]] == ["0", "1"]


def test_nothing_draws_from_the_numbers_of_python_and_numpy(longer, tmp_path):
    """Their states are in no checkpoint."""
    config = longer(epochs=1)
    run(config, tmp_path / "one")  # seeds them
    before = random.getstate(), np.random.get_state()[1].tolist()
    module = DetectorModule(build_detector(config.model, 4), config.training)
    data = DetectionData(config.data)
    for batch in data.train_dataloader():
        module.model.loss(batch)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before


def test_in_slurm_lightning_leaves_requeueing_alone(longer, tmp_path, monkeypatch):
    """Lightning would save into the working directory in the middle of a step, and start the next run there from it."""
    for name, value in {"NTASKS": "1", "PROCID": "0", "LOCALID": "0", "NODEID": "0", "JOB_ID": "7"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("SLURM_JOB_NAME", "train")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hpc_ckpt_1.ckpt").write_bytes(b"of another run")
    before(monkeypatch, "training_step", 1, lambda: signal.raise_signal(signal.SIGUSR1))
    with pytest.raises(KeyboardInterrupt):
        run(longer(), tmp_path / "run")
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hpc_ckpt_1.ckpt", "run"]
