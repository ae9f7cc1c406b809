"""A classifier trained by the function and by the command: its folder, its metrics, and how it continues."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml

from detect.backbones import AlexNetOptions, LeNetOptions, ResNetOptions
from detect.checkpoint import ClassifierCheckpoint, load_any
from detect.cli import main
from detect.config import ClassificationConfig, JointOptions, TrainingOptions, config_to_yaml, load_experiment
from detect.data.classification import ClassificationData
from detect.data.classification_options import ClassificationDataOptions
from detect.errors import UserError
from detect.evaluation.classification import ClassificationEvaluator
from detect.models import ClassifierOptions
from detect.training.fit import fit_classifier
from detect.training.module import ClassifierModule

COUNTS = {"train": 12, "val": 6}


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Noise that is dark or light, which is the class."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split, count in COUNTS.items():
        for low, name in ((0, "dark"), (150, "light")):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(low, low + 100, size=(32, 32, 3), dtype=np.uint8)
                cv2.imwrite(str(root / split / name / f"{number}.png"), pixels)
    return root


@pytest.fixture(scope="module")
def config(images) -> ClassificationConfig:
    """Two epochs of three steps."""
    return ClassificationConfig(
        model=ClassifierOptions(backbone=LeNetOptions()),
        data=ClassificationDataOptions(root=images, size=32, resize=32, batch_size=8, workers=0),
        training=TrainingOptions(
            epochs=2, learning_rate=0.05, warmup_steps=0, schedule="constant", accelerator="cpu", devices=1
        ),
    )


def changed(config: ClassificationConfig, model=(), data=(), **training) -> ClassificationConfig:
    return replace(
        config,
        model=replace(config.model, **dict(model)),
        data=replace(config.data, **dict(data)),
        training=replace(config.training, **training),
    )


def run(config: ClassificationConfig, out: Path, **options) -> Path:
    return fit_classifier(config, ClassificationData(config.data, seed=config.training.seed), out, **options)[0]


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory) -> Path:
    """The folder of an uninterrupted run by the command, with averaged weights."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "lenet.yaml").write_text(config_to_yaml(changed(config, ema=0.5)), encoding="utf-8")
    assert main(["train", "-c", str(folder / "lenet.yaml"), "--out", str(folder / "whole")]) == 0
    return folder / "whole"


# ---- a run -----------------------------------------------------------------------------------------------------------


def test_a_run_leaves_all_that_is_needed_to_repeat_and_judge_it(whole, config):
    files = {path.relative_to(whole).as_posix() for path in whole.rglob("*") if path.is_file()}
    assert files >= {
        *("config.yaml", "metrics.csv", "training.json", "checkpoints/best.ckpt", "checkpoints/last.ckpt"),
        *("eval/metrics.json", "eval/predictions.csv", "eval/confusion.png"),
    }
    assert load_experiment(whole / "config.yaml") == changed(config, ema=0.5)


def test_figures_are_those_of_every_validation_and_of_the_end(whole, images):
    validations = [row for row in rows(whole) if row["top1"]]
    assert [row["epoch"] for row in validations] == ["0", "1"]
    assert all(0 <= float(row["top1"]) <= float(row["top5"]) == 1 for row in validations)  # two classes
    metrics = json.loads((whole / "eval" / "metrics.json").read_text())
    assert metrics["top1"] == max(float(row["top1"]) for row in validations) and metrics["top5"] == 1
    assert np.sum(metrics["confusion"]) == metrics["evaluation"]["images"] == 2 * COUNTS["val"]
    assert metrics["evaluation"]["root"] == str(images) and metrics["evaluation"]["split"] == "val"


def test_a_checkpoint_tells_what_it_is(whole):
    checkpoint = load_any(whole / "checkpoints" / "best.ckpt")
    assert isinstance(checkpoint, ClassifierCheckpoint) and checkpoint.classes == ("dark", "light")
    assert checkpoint.config == load_experiment(whole / "config.yaml")
    card = torch.load(whole / "checkpoints" / "best.ckpt", weights_only=True)["detect"]
    assert set(card["versions"]) == {"python", "detect", "torch", "torchvision", "lightning"}


def test_dark_and_light_are_learned(config, images, tmp_path):
    best = run(changed(config, epochs=5, momentum=0.9), tmp_path)
    model = load_any(best).model
    for value, label in ((50, 0), (200, 1)):
        assert model(torch.full((1, 3, 32, 32), value, dtype=torch.uint8)).argmax() == label


def test_the_best_checkpoint_is_that_of_the_highest_top1(config, tmp_path, monkeypatch):
    values = iter([0.5, 0.9, 0.7])
    monkeypatch.setattr(ClassificationEvaluator, "compute", lambda self: {"top1": next(values), "top5": 1.0})
    best = run(changed(config, epochs=3), tmp_path)
    assert best == tmp_path / "checkpoints" / "best.ckpt"
    assert torch.load(best, weights_only=True)["epoch"] == 1
    assert torch.load(best.with_name("last.ckpt"), weights_only=True)["epoch"] == 2


def test_without_validation_the_last_checkpoint_is_taken(config, tmp_path):
    best = run(changed(config, data={"val": None}, epochs=1), tmp_path)
    assert best == tmp_path / "checkpoints" / "last.ckpt" and not best.with_name("best.ckpt").exists()


def test_it_begins_with_another_classifiers_weights(whole, config, tmp_path):
    source = whole / "checkpoints" / "best.ckpt"
    model = {"backbone": LeNetOptions(weights=str(source)), "trainable": "head"}
    tuned, before = weights(run(changed(config, model, epochs=1), tmp_path)), weights(source)
    moved = {name for name, value in tuned.items() if not torch.equal(value, before[name])}
    assert moved == {"model.network.classifier.4.weight", "model.network.classifier.4.bias"}


# ---- a run that goes on ----------------------------------------------------------------------------------------------


def test_a_run_that_goes_on_ends_where_the_whole_one_does(whole, config, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:

        def stop_in_second_epoch(self) -> None:
            if self.current_epoch == 1:
                raise RuntimeError("the power went")

        patch.setattr(ClassifierModule, "on_train_epoch_start", stop_in_second_epoch)
        with pytest.raises(RuntimeError, match="the power went"):
            run(changed(config, ema=0.5), tmp_path)
    assert main(["train", "--resume", "--out", str(tmp_path)]) == 0
    ours, theirs = (weights(folder / "checkpoints" / "last.ckpt") for folder in (tmp_path, whole))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert [row["top1"] for row in rows(tmp_path)] == [row["top1"] for row in rows(whole)]


@pytest.mark.parametrize(
    "model",
    [
        {"backbone": ResNetOptions(18, norm="batch")},
        {"trainable": "head"},
        {"backbone": LeNetOptions(initialization="he")},
    ],
)
def test_another_network_is_no_run_to_go_on_with(whole, config, model):
    before = (whole / "config.yaml").read_text()
    with pytest.raises(
        UserError,
        match=r"^--resume: .*last\.ckpt has another network than the config; to begin a new run .* use --weights ",
    ):
        run(changed(config, model), whole, resume=True)
    assert (whole / "config.yaml").read_text() == before


def test_other_classes_are_no_run_to_go_on_with(whole, config, images, tmp_path):
    for split in COUNTS:
        (tmp_path / split).mkdir()
        for name, other in (("dark", "black"), ("light", "white")):
            shutil.copytree(images / split / name, tmp_path / split / other)
    with pytest.raises(UserError, match="has 2 classes: dark, light; the data has others; to begin a new run"):
        run(changed(config, data={"root": tmp_path}), whole, resume=True)


# ---- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "data", "training", "message"),
    [
        (
            {"backbone": AlexNetOptions()},
            {},
            {},
            r"^data\.size: 32 pixels are too few for the network; give more \(.*small",
        ),
        (
            {"backbone": ResNetOptions(18, norm="instance")},
            {},
            {},
            r"^data\.size: 32 pixels are too few .*more than 1 spatial",
        ),
        ({}, {}, {"recipe": JointOptions()}, r"^training\.recipe: recipes are for detectors"),
        ({}, {}, {"devices": 13}, "the split val has batches for 1 of 13 processes; lower --data.eval_batch_size"),
        (
            {"backbone": LeNetOptions(train_stages=3), "trainable": "stages"},
            {},
            {},
            r"^train_stages: 3: the net",
        ),
        ({"backbone": LeNetOptions(weights="gone.pth")}, {}, {}, r"^gone\.pth: no such file"),
        ({}, {"val": "test"}, {}, "there is no split test, only train, val"),
    ],
    ids=["small", "one cell", "alternating", "processes", "stages", "weights", "split"],
)
def test_a_mistake_is_found_before_there_is_a_folder(config, tmp_path, model, data, training, message):
    with pytest.raises(UserError, match=message) as caught:
        run(changed(config, model, data, **training), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


# ---- the commands ----------------------------------------------------------------------------------------------------


def test_eval_has_the_figures_of_the_run(whole, tmp_path):
    best, out = str(whole / "checkpoints" / "best.ckpt"), tmp_path / "eval"
    assert main(["eval", "--ckpt", best, "--split", "val", "--out", str(out)]) == 0
    ours, theirs = (json.loads((folder / "metrics.json").read_text()) for folder in (out, whole / "eval"))
    assert ours == theirs


def test_dense_eval_of_images_of_the_networks_size_is_that_of_crops(whole, tmp_path):
    best, out = str(whole / "checkpoints" / "best.ckpt"), tmp_path / "eval"
    assert main(["eval", "--ckpt", best, "--split", "val", "--out", str(out), "--dense"]) == 0
    ours, theirs = (json.loads((folder / "metrics.json").read_text()) for folder in (out, whole / "eval"))
    assert ours.pop("evaluation") == theirs.pop("evaluation") | {"dense": True} and ours == theirs


def test_dense_eval_shows_the_network_whole_images(whole, images, tmp_path):
    best, shape = whole / "checkpoints" / "best.ckpt", (3, 48, 60)
    for name in ("dark", "light"):
        (tmp_path / "wide" / name).mkdir(parents=True)
        pixels = cv2.imread(str(images / "val" / name / "0.png"))
        cv2.imwrite(str(tmp_path / "wide" / name / "0.png"), cv2.resize(pixels, (40, 32)))
    words = ["eval", "--ckpt", str(best), "--split", "wide", "--data.root", str(tmp_path), "--data.resize", "48"]
    assert main([*words, "--dense", "--out", str(tmp_path / "eval")]) == 0
    with (tmp_path / "eval" / "predictions.csv").open(newline="") as file:
        probabilities = [float(row["probability"]) for row in csv.DictReader(file)]
    model = load_any(best).model.to_dense(32)
    data = ClassificationData(replace(load_any(best).config.data, root=tmp_path, resize=48), ("dark", "light"))
    batches = list(data.eval_loader(data.split("wide"), whole=True))
    assert [tuple(batch.images.shape) for batch in batches] == [(1, *shape)] * 2
    with torch.no_grad():
        expected = [model(batch.images).softmax(dim=1).max().item() for batch in batches]
    assert probabilities == pytest.approx(expected, abs=1e-4)


def test_dense_eval_of_resized_features_is_refused_in_a_line(whole, tmp_path, capsys):
    best, out = str(whole / "checkpoints" / "best.ckpt"), tmp_path / "eval"
    assert main(["eval", "--ckpt", best, "--out", str(out), "--dense", "--data.size", "24", "--data.resize", "24"]) == 2
    error = capsys.readouterr().err
    assert "data.size: 24: such crops have 3×3 cells" in error and error.count("\n") == 1 and not out.exists()


def test_eval_on_other_images_follows_the_classes_of_the_model(whole, images, tmp_path):
    (tmp_path / "test").mkdir()
    shutil.copytree(images / "val" / "light", tmp_path / "test" / "light")
    best, out = str(whole / "checkpoints" / "best.ckpt"), tmp_path / "eval"
    words = ["eval", "--ckpt", best, "--split", "test", "--out", str(out), "--data.root", str(tmp_path)]
    assert main(words) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert list(metrics["per_class"]) == ["dark", "light"]
    dark = metrics["per_class"]["dark"]
    assert (dark["images"], dark["recall"]) == (0, None)
    assert np.sum(metrics["confusion"], axis=1).tolist() == [0, COUNTS["val"]]


@pytest.mark.parametrize(
    "words",
    [
        ["compare", "CKPT", "--out", "OUT"],
        ["compare", "CONFIG", "--out", "OUT"],
        ["compress", "--ckpt", "CKPT", "--out", "OUT"],
        ["propose", "ROOT", "--recall", "val", "--ckpt", "CKPT"],
    ],
    ids=" ".join,
)
def test_commands_for_detectors_say_that_this_is_none(whole, images, tmp_path, capsys, words):
    places = {"CKPT": whole / "checkpoints" / "best.ckpt", "CONFIG": whole / "config.yaml", "OUT": tmp_path / "out"}
    places["ROOT"] = images
    assert main([str(places.get(word, word)) for word in words]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "classifier" in error and "give the c" in error
    assert not (tmp_path / "out").exists()


def test_a_detector_does_not_go_on_with_a_classifiers_run(whole, images, tmp_path, capsys):
    (tmp_path / "detector.yaml").write_text(yaml.safe_dump({"data": {"root": str(images)}}))
    assert main(["train", "-c", str(tmp_path / "detector.yaml"), "--resume", "--out", str(whole)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert load_experiment(whole / "config.yaml").model.name == "classifier"
