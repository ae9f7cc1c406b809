"""The command: mostly run in this process; help and distributed runs in processes of their own."""

import json
import os
import pickle
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from detect.backbones import ResNetOptions
from detect.cli import _options_of, _parser, _take_overrides, main
from detect.config import ClassificationConfig, Config, config_to_dict
from detect.curation.shapes import SHAPES, make_shapes
from detect.data.formats import FORMATS
from detect.data.read import read
from detect.evaluation.coco import METRICS
from detect.models import FasterRCNNOptions
from detect.prediction.onnx_detector import OnnxDetector
from detect.prediction.result import Result
from detect.training.run import _print_notes

TINY = {
    "model": {
        "backbone": {"name": "resnet", "depth": 18, "norm": "batch", "train_stages": 5},
        "rpn": {
            "anchor_sizes": [8, 16, 32, 48, 64],
            "training": {"pre_nms_top_k": 100, "post_nms_top_k": 20},
            "testing": {"pre_nms_top_k": 100, "post_nms_top_k": 20},
        },
        "box_head": {"layers": 1, "channels": 32},
        "region_head": {"batch_size_per_image": 16},
        "postprocess": {"score_threshold": 0.01},
    },
    "data": {"short_side": [64], "long_side": 96, "canvases": 1, "workers": 0, "batch_size": 4, "eval_batch_size": 2},
    "training": {"epochs": 1, "warmup_steps": 0, "learning_rate": 0.01, "accelerator": "cpu"},
}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shapes"
    return make_shapes(folder, images={"train": 4, "val": 3, "test": 7}, size=(64, 96), progress=False)


@pytest.fixture(scope="module")
def config(shapes, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("configs") / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY | {"data": TINY["data"] | {"root": str(shapes)}}))
    return path


@pytest.fixture(scope="module")
def run(config, tmp_path_factory) -> Path:
    """Train a detector and return the folder of the run."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    assert main(["train", "-c", str(config), "--out", str(out)]) == 0
    return out


def commands(parser=None) -> list[tuple[str, ...]]:
    """Return every command with its subcommands, from the parser."""
    parser = parser or _parser()
    subparsers = next((action.choices for action in parser._actions if isinstance(action.choices, dict)), {})
    return [()] + [(name, *rest) for name, one in subparsers.items() for rest in commands(one)]


# ---- help ------------------------------------------------------------------------------------------------------------


def test_all_commands_exist():
    assert {" ".join(names) for names in commands()} >= {
        *("demo", "train", "eval", "propose", "data shapes", "data download"),
    }


@pytest.mark.parametrize("names", commands(), ids=" ".join)
def test_every_help_has_an_example(names, capsys):
    with pytest.raises(SystemExit) as caught:
        main([*names, "--help"])
    assert caught.value.code == 0 and f"example: detect {' '.join(names)}" in capsys.readouterr().out


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from detect.cli import main\n"
        "for arguments in (['--help'], ['train', '--help']):\n"
        "    try: main(arguments)\n"
        "    except SystemExit: pass\n"
        "print(*{'torch', 'numpy', 'lightning', 'cv2', 'pydantic', 'rich'} & set(sys.modules), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stderr == "\n" and "usage: detect train" in done.stdout


def test_import_loads_no_extra():
    code = (
        "import sys, detect; detect.load; print(*{'fastapi', 'uvicorn', 'ray', 'pyarrow', 'lance'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "\n"


# ---- runs ------------------------------------------------------------------------------------------------------------


def test_a_run_writes_config_checkpoints_and_evaluation(run, shapes):
    files = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    assert files >= {
        "config.yaml",
        "metrics.csv",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "eval/metrics.json",
        "eval/predictions.json",
    }
    assert yaml.safe_load((run / "config.yaml").read_text())["data"]["root"] == str(shapes)


def test_metrics_begin_with_the_twelve_of_coco(run):
    metrics = json.loads((run / "eval" / "metrics.json").read_text())
    assert list(metrics)[:12] == list(METRICS)
    assert all(metrics[name] is None or 0 <= metrics[name] <= 1 for name in METRICS)
    assert metrics["AP"] is not None and set(metrics["per_class"]) <= {*SHAPES}


def test_predictions_are_in_coco_format(run):
    predictions = json.loads((run / "eval" / "predictions.json").read_text())
    assert predictions and {prediction["image_id"] for prediction in predictions} <= {1, 2, 3}
    for prediction in predictions:
        assert set(prediction) == {"image_id", "category_id", "bbox", "score"}
        assert 1 <= prediction["category_id"] <= 6 and 0 < prediction["score"] <= 1
        assert len(prediction["bbox"]) == 4 and min(prediction["bbox"][2:]) > 0


def test_eval_reproduces_the_metrics_of_the_run(run, tmp_path, capsys):
    arguments = ["eval", "--ckpt", str(run / "checkpoints" / "best.ckpt"), "--out", str(tmp_path)]
    assert main(arguments) == 0
    for name in ("metrics.json", "predictions.json"):
        assert (tmp_path / name).read_text() == (run / "eval" / name).read_text()
    assert str(tmp_path / "metrics.json") in capsys.readouterr().out


def test_eval_writes_into_new_folders_and_records_its_settings(config, run, shapes, capsys):
    best = run / "checkpoints" / "best.ckpt"
    for name in ("eval_val", "eval_val_2"):
        assert main(["eval", "--ckpt", str(best), "--split", "val"]) == 0
        about = json.loads((run / name / "metrics.json").read_text())["evaluation"]
        assert about["root"] == str(shapes) and about["split"] == "val" and about["images"] == 3
        assert about["checkpoint"] == str(best) and about["precision"] == "fp32" and about["engine"] == "pycocotools"
        shutil.rmtree(run / name) if name == "eval_val_2" else None
    assert "not empty" in mistake(capsys, "eval", "--ckpt", best, "--out", run / "eval_val")
    assert "this is a file" in mistake(capsys, "eval", "--ckpt", best, "--out", config)
    assert "choose another folder" in mistake(capsys, "eval", "--ckpt", best, "--out", config / "below")
    shutil.rmtree(run / "eval_val")


def test_eval_accepts_model_options_and_refuses_training_options(run, tmp_path, capsys):
    best = run / "checkpoints" / "best.ckpt"
    assert main(["eval", "--ckpt", str(best), "--out", str(tmp_path), "--model.postprocess.max_detections=2"]) == 0
    predictions = json.loads((tmp_path / "predictions.json").read_text())
    assert 0 < len(predictions) <= 2 * 3
    assert "checkpoints are already trained" in mistake(capsys, "eval", "--ckpt", best, "--training.epochs=3")
    wrong = mistake(capsys, "eval", "--ckpt", best, "--model.box_head.channels=16")
    assert wrong.startswith(f"{best}: the weights do not fit the options --")
    assert "size mismatch" in wrong and wrong.endswith("; leave these out")


def images(shapes: Path) -> list[Path]:
    return sorted((shapes / "images" / "test").iterdir())


def test_predictions_as_files(run, shapes, tmp_path, capsys):
    ckpt, out = run / "checkpoints" / "best.ckpt", tmp_path / "out"
    words = ["predict", "--ckpt", str(ckpt), str(shapes / "images" / "test"), "--out", str(out)]
    assert main([*words, "--score", "0.02", "--classes", *list(SHAPES)[:2], "--batch-size", "2"]) == 0
    output = capsys.readouterr().out
    assert sorted(path.name for path in (out / "pictures").iterdir()) == [f"{path.stem}.jpg" for path in images(shapes)]
    detections = json.loads((out / "predictions.json").read_text())
    assert output == f"{out}: 7 images, {len(detections)} detections\n"
    assert all(one["score"] >= 0.02 and one["category_id"] in range(1, 4) for one in detections)
    rows = (out / "predictions.csv").read_text().splitlines()
    assert len(rows) == len(detections) + 1 and {row.rpartition(",")[2] for row in rows[1:]} <= set(list(SHAPES)[:2])


def test_an_unreadable_image_among_good_ones(run, shapes, tmp_path, capsys):
    good, broken = images(shapes)[0], tmp_path / "broken.jpg"
    broken.write_bytes(good.read_bytes()[:200])
    words = ["predict", "--ckpt", str(run / "checkpoints" / "best.ckpt"), str(good), str(broken)]
    assert main([*words, "--out", str(tmp_path / "out"), "--save", "csv"]) == 3
    output = capsys.readouterr()
    assert output.out.startswith(f"{tmp_path / 'out'}: 1 images, ")
    first, remedy = output.err.splitlines()
    assert first.startswith(f"detect: skipped: {broken}: ")
    assert remedy.endswith("to process repaired files, give another --out")


def test_a_score_threshold_of_zero_is_not_ignored(run, shapes, tmp_path, capsys):
    ckpt, image = run / "checkpoints" / "best.ckpt", images(shapes)[0]
    counts = []
    for score in ("0", "0.3"):
        out = tmp_path / score
        words = ["predict", "--ckpt", str(ckpt), str(image), "--score", score, "--save", "coco", "--out", str(out)]
        assert main(words) == 0
        counts.append(len(json.loads((out / "predictions.json").read_text())))
    assert counts[0] > counts[1]


def test_mistakes_in_predicting(run, shapes, tmp_path, capsys):
    ckpt, image = run / "checkpoints" / "best.ckpt", images(shapes)[0]
    for words, message in (
        ([image, "--shard", "1/2"], "--shard: all shards write to the same folder; give it with --out"),
        ([image, "--shard", "half", "--out", tmp_path / "a"], "--shard: 'half'; give i/n"),
        ([image, "--tta-scales", "0", "--out", tmp_path / "a"], "scales: [0.0]; give factors"),
        ([image, "--batch-size", "0", "--out", tmp_path / "a"], "batch_size: 0; give a whole number of 1 or more"),
        ([image, "--classes", "moon", "--out", tmp_path / "a"], "class 'moon': no such class"),
        (
            [tmp_path / "none.jpg", "--out", tmp_path / "a"],
            "none.jpg': there is no such file or folder; check the path",
        ),
    ):
        assert message in mistake(capsys, "predict", "--ckpt", ckpt, *words)
    assert "give a checkpoint" in mistake(capsys, "predict", "--ckpt", tmp_path / "no.ckpt", image)


@pytest.mark.parametrize(("old", "new"), [(["--flip"], "--tta-flip"), (["--scales", "0.75", "1"], "--tta-scales")])
def test_former_names_of_options_are_answered_with_the_new_ones(capsys, old, new):
    error = mistake(capsys, "predict", "photo.jpg", "--ckpt", "a.ckpt", *old)
    assert error == f"{old[0]}: this option is now called {new}"


@pytest.mark.parametrize("option", [["--tta-flip"], ["--tta-scales", "0.5"], ["--device", "cpu"], ["--compile"]])
def test_options_that_an_exported_model_does_not_have(capsys, option):
    error = mistake(capsys, "predict", "photo.jpg", "--ckpt", "a.onnx", *option)
    assert error.startswith(f"{option[0]}: not available for an exported model")


class Exported(OnnxDetector):
    """Stand-in for an exported model whose detections equal the ground truth."""

    def __init__(self, path: Path) -> None:
        dataset = read(path.with_suffix(""), "test")
        self.path, self.classes, self.category_ids = path, dataset.classes, tuple(range(1, len(dataset.classes) + 1))
        self.config, self.records = config_to_dict(Config()), dataset.records

    def predict(self, source: object) -> Iterator[Result]:
        assert source == [record.path for record in self.records]
        for record in self.records:
            size, scores = (record.height, record.width), np.ones(len(record.boxes), np.float32)
            yield Result(record.boxes, scores, record.labels, self.classes, self.category_ids, size)


def test_an_exported_detector_is_evaluated(shapes, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("detect.prediction.evaluate_checkpoint.OnnxDetector", Exported)
    model = shapes.with_suffix(".onnx")
    words = ["eval", "--ckpt", str(model), "--data.root", str(shapes), "--split", "test"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["AP"] == metrics["AP50"] == 1 and metrics["evaluation"]["device"] == "ONNX Runtime"
    assert "average precision" in capsys.readouterr().out
    fixed = "--model.postprocess.score_threshold=0.3", "--data.short_side=[32]", "--data.long_side=48"
    for option in (*fixed, "--training.epochs=1", "--precision=bf16"):
        assert mistake(capsys, *words, option).startswith(option.partition("=")[0])


def test_an_exported_detector_cannot_follow_links(shapes, tmp_path, capsys, monkeypatch):
    root = tmp_path / "linked"
    shutil.copytree(shapes, root)
    image = next((root / "images" / "test").iterdir())
    image.symlink_to(image.replace(tmp_path / "outside.jpg"))
    exported = Exported(shapes.with_suffix(".onnx"))
    exported.records = [replace(one, path=root / one.path.relative_to(shapes)) for one in exported.records]
    exported.config["data"]["follow_links"] = True
    monkeypatch.setattr("detect.prediction.evaluate_checkpoint.OnnxDetector", lambda path: exported)
    words = "eval", "--ckpt", "x.onnx", "--data.root", root, "--split", "test", "--out", tmp_path / "out"
    assert image.name in mistake(capsys, *words)
    assert main([*map(str, words), "--data.follow_links=true"]) == 0


def test_an_exported_file_with_the_config_of_a_classifier_is_refused(shapes, capsys, monkeypatch):
    exported = Exported(shapes.with_suffix(".onnx"))
    exported.config = config_to_dict(ClassificationConfig())
    monkeypatch.setattr("detect.prediction.evaluate_checkpoint.OnnxDetector", lambda path: exported)
    assert "this is a classifier; give a file that detect export has written" in mistake(
        capsys, "eval", "--ckpt", "x.onnx"
    )


def test_unknown_weights_are_refused(tmp_path, capsys):
    torch.save({"some.weight": torch.zeros(2)}, tmp_path / "a.pth")
    out = tmp_path / "out.ckpt"
    assert f"{tmp_path / 'a.pth'}: " in mistake(capsys, "import", "torchvision", tmp_path / "a.pth", "--out", out)
    assert not out.exists()


def test_an_export_does_not_overwrite_a_file(run, tmp_path, capsys):
    (tmp_path / "a.safetensors").write_text("mine")
    ckpt = run / "checkpoints" / "best.ckpt"
    words = ["export", "--ckpt", str(ckpt), "--format", "safetensors", "--out"]
    assert "this exists already" in mistake(capsys, *words, tmp_path / "a.safetensors")
    assert "ends in .safetensors" in mistake(capsys, *words, tmp_path / "a.onnx")
    assert main([*words, str(tmp_path / "b.safetensors")]) == 0
    assert main(["eval", "--ckpt", str(tmp_path / "b.safetensors"), "--out", str(tmp_path / "eval")]) == 0
    one, other = (json.loads((folder / "metrics.json").read_text()) for folder in (tmp_path / "eval", run / "eval"))
    assert [one[name] for name in METRICS] == [other[name] for name in METRICS]


def test_the_recall_of_an_rpn(run, shapes, tmp_path, capsys):
    best = str(run / "checkpoints" / "best.ckpt")
    picture = tmp_path / "recall.png"
    assert main(["propose", str(shapes), "--ckpt", best, "--recall", "val", "--out", str(picture)]) == 0
    printed = capsys.readouterr().out
    assert "recall@0.8" in printed and "MABO" in printed and str(picture) in printed and picture.stat().st_size
    assert "only source" in mistake(capsys, "propose", shapes, shapes, "--ckpt", best, "--recall", "val")


def test_the_version(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0 and capsys.readouterr().out.startswith("detect 0.1.0, torch ")


def test_a_run_is_resumed(config, tmp_path):
    common = ["--out", str(tmp_path / "run"), "--data.train=val", "--data.val=null"]
    assert main(["train", "-c", str(config), "--resume", *common]) == 0  # there is no run to resume yet
    assert main(["train", *common, "--resume", "--training.epochs=2"]) == 0
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["epoch"] == 1 and not (tmp_path / "run" / "eval").exists()


def test_generated_data_and_the_printed_folder(tmp_path, capsys):
    assert main(["data", "shapes", "--out", str(tmp_path / "new"), "--images", "1"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "new")
    assert len(list((tmp_path / "new" / "images").rglob("*.jpg"))) == 2


# ---- mistakes --------------------------------------------------------------------------------------------------------


def mistake(capsys, *arguments: object) -> str:
    """The only line on stderr of a command that ends with exit code 2."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("detect: error: ") and error.count("\n") == 1 and "Traceback" not in error
    return error.removeprefix("detect: error: ").rstrip()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--training.epohcs", "3"], "--training.epohcs: there is no such option; did you mean training.epochs?"),
        (["--data.root", "nowhere"], "nowhere: there is no such folder or file; check the path of the data"),
        (["--data.train", "learn"], "there is no split learn; name one of test, train, val"),
        (["--data.augment", "[{HorizontlFlip: {}}]"], "did you mean HorizontalFlip"),
        (["--data.max_objects", "1"], "boxes, but data.max_objects is 1"),
        (["--model.backbone.weights", "IMAGENET"], "weights: IMAGENET: give one of IMAGENET1K_V1"),
        (["--model.backbone.weights", "gone.pth"], "gone.pth: no such file"),
    ],
)  # fmt: skip
def test_mistakes_in_the_config(config, tmp_path, capsys, options, message):
    assert message in mistake(capsys, "train", "-c", config, "--out", tmp_path / "run", *options)


def test_a_mistake_in_the_config_creates_no_folder(config, tmp_path, capsys):
    mistake(capsys, "train", "-c", config, "--out", tmp_path / "run", "--model.backbone.weights=gone.pth")
    assert not (tmp_path / "run").exists()


def test_a_missing_config(tmp_path, capsys):
    assert "no such file" in mistake(capsys, "train", "-c", tmp_path / "no.yaml", "--out", tmp_path / "run")
    assert mistake(capsys, "train").startswith("DIR: name the data set, for example detect train photos")


def test_a_used_folder(config, run, tmp_path, capsys):
    assert "the folder is not empty; give another --out" in mistake(capsys, "train", "-c", config, "--out", run)
    assert "this is a file; give another --out" in mistake(capsys, "train", "-c", config, "--out", config)
    assert "the folder is not empty" in mistake(capsys, "demo", "--out", run)
    assert "not empty" in mistake(capsys, "data", "shapes", "--out", run)


def test_nothing_to_resume(config, tmp_path, capsys):
    assert "--resume: name the folder of the run with --out DIR" in mistake(capsys, "train", "-c", config, "--resume")
    lost = mistake(capsys, "train", "--resume", "--out", tmp_path)
    assert lost == f"--resume: {tmp_path} has no run; give the data or -c to start one"
    (tmp_path / "mine").touch()
    assert "not empty" in mistake(capsys, "train", "-c", config, "--resume", "--out", tmp_path)


def test_the_format_of_a_folder_with_annotations_in_two(shapes, tmp_path, capsys):
    both = shutil.copytree(shapes, tmp_path / "both")
    assert main(["data", "convert", str(shapes), "--to", "yolo", "--out", str(tmp_path / "yolo")]) == 0
    shutil.copytree(tmp_path / "yolo", both, dirs_exist_ok=True)
    out = tmp_path / "out"
    commands = {
        "check": (both,),
        "stats": (both,),
        "convert": (both, "--to", "voc", "--out", out),
        "split": (both, "--val", "0.5", "--out", out),
        "merge": (both, tmp_path / "yolo", "--out", out),
    }
    for command, words in commands.items():
        problem = mistake(capsys, "data", command, *words)
        assert "several formats" in problem and "(detect data: --format)" in problem
        format = ["--format", "yolo", "--split", "val"]
        assert main(["data", command, *map(str, words), *format]) in ((0, 1) if command == "check" else (0,))
        assert "val" in capsys.readouterr().out
        shutil.rmtree(out, ignore_errors=True)
    assert "choose coco, " in mistake(capsys, "data", "check", both, "--format", "pascal")


def test_values_are_not_taken_for_data(tmp_path, capsys):
    lost = tmp_path / "lost"
    assert f"{lost}: there is no such folder" in mistake(capsys, "train", "--training.epochs", "3", lost)
    assert "it is training.learning_rate" in mistake(capsys, "train", lost, "--lr", "0.1")
    assert "it is training.precision" in mistake(capsys, "train", "--half", "yes", lost)


def test_files_that_are_not_checkpoints(run, tmp_path, capsys):
    for content in (b"x", pickle.dumps(print)):
        (tmp_path / "a.ckpt").write_bytes(content)
        assert "not a checkpoint of detect" in mistake(capsys, "eval", "--ckpt", tmp_path / "a.ckpt")
    assert "No such file" in mistake(capsys, "eval", "--ckpt", tmp_path / "b.ckpt")
    assert "no split tset" in mistake(capsys, "eval", "--ckpt", run / "checkpoints" / "best.ckpt", "--split", "tset")


@pytest.fixture
def damaged(shapes, tmp_path) -> Path:
    return shutil.copytree(shapes, tmp_path / "damaged")


def test_a_truncated_image(config, damaged, tmp_path, capsys):
    image = damaged / "images" / "train" / "000002.jpg"
    image.write_bytes(image.read_bytes()[:-300])
    error = mistake(capsys, "train", "-c", config, "--out", tmp_path / "run", "--data.root", damaged)
    assert "000002.jpg" in error and "truncated" in error
    left_out = [f"--data.root={damaged}", "--data.val=null", "--data.skip_unreadable=true"]
    assert main(["train", "-c", str(config), "--out", str(tmp_path / "run"), *left_out]) == 0


def test_a_box_with_nan(config, damaged, tmp_path, capsys):
    path = damaged / "annotations" / "instances_train.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["bbox"][2] = np.nan
    path.write_text(json.dumps(content))
    error = mistake(capsys, "train", "-c", config, "--out", tmp_path / "run", "--data.root", damaged)
    assert "instances_train.json" in error and "annotation 1 of image" in error and "nan" in error


def test_a_loss_of_nan(config, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("detect.models.losses.F.smooth_l1_loss", lambda *args, **_: args[0] * torch.nan)
    error = mistake(capsys, "train", "-c", config, "--out", tmp_path / "run")
    assert error.startswith("step 1: the loss is nan on the images with ids ")


def test_an_option_that_a_command_does_not_accept(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["demo", "--data.root", "x"])
    error = capsys.readouterr().err
    assert caught.value.code == 2 and error.startswith("usage: detect demo [-h] [--out OUT]")
    assert error.endswith("detect demo: error: unrecognised: --data.root x\n")


@pytest.mark.parametrize(
    ("word", "meant"), [("trains", "did you mean train? "), ("val", "did you mean eval? "), ("xyzzy", "")]
)
def test_an_unknown_command(capsys, word, meant):
    expected = f"{word}: there is no such command; {meant}`detect --help` lists them"
    assert mistake(capsys, word, "photos") == expected


@pytest.mark.parametrize("words", [["data", "stats", "x"], ["report", "--out", "x"], ["predict", "--ckpt", "a", "b"]])
def test_an_unrecognised_option_is_answered_with_the_usage_of_its_command(capsys, words):
    with pytest.raises(SystemExit) as caught:
        main([*words, "--wrong"])
    name = " ".join(["detect", *words[: 2 if words[0] == "data" else 1]])
    error = capsys.readouterr().err
    assert caught.value.code == 2 and error.startswith(f"usage: {name} [-h]")
    assert error.endswith(f"{name}: error: unrecognised: --wrong\n")


def test_a_bug_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr("detect.training.request.load_experiment", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["train", "-c", "any.yaml"])


def test_an_interrupt_names_the_command_that_resumes(config, tmp_path, capsys, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("detect.training.loop.run_loop", interrupt)
    out = tmp_path / "run"
    assert main(["train", "-c", str(config), "--out", str(out)]) == 130
    assert capsys.readouterr().err == f"detect: interrupted; continue with: detect train --resume --out {out}\n"
    monkeypatch.setattr("detect.curation.shapes.make_shapes", interrupt)
    assert main(["data", "shapes", "--out", str(tmp_path / "new")]) == 130
    assert capsys.readouterr().err == "detect: interrupted\n"


def test_the_commands_of_the_readme_are_commands():
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    commands = [words[1:] for words in (shlex.split(line, comments=True) for line in lines) if words[:1] == ["detect"]]
    assert ["train", "photos/"] in commands and len(commands) > 20
    for words in commands:
        kept, _ = _take_overrides(words, _options_of(_parser(), words[0]))
        options, rest = _parser().parse_known_args(kept if words[0] in ("train", "compare") else words)
        assert options.takes_overrides or not rest, words
        if words[0] in ("train", "compare"):
            assert not rest, words


# ---- weights ---------------------------------------------------------------------------------------------------------


def test_a_detector_is_tuned_to_other_classes_evaluated_and_resumed(run, shapes, tmp_path, capsys):
    data = shutil.copytree(shapes, tmp_path / "data")
    for path in (data / "annotations").iterdir():
        content = json.loads(path.read_text())
        for category, name in zip(content["categories"], ("Circle", "box", "triangle", "ring"), strict=True):
            category["name"] = name
        path.write_text(json.dumps(content))
    last, out = run / "checkpoints" / "last.ckpt", tmp_path / "tuned"
    words = ["train", "--weights", last, "--out", out, "--data.root", data, "--data.workers=0"]
    assert main([*map(str, words)]) == 0
    printed = capsys.readouterr().out
    assert f"{last} → faster_rcnn on resnet18-fpn" in printed
    assert "3 classes taken by name: Circle, triangle, ring\n  1 class new: box\n  1 class left out: square" in printed
    assert main([*map(str, [*words, "--resume", "--training.epochs", 2])]) == 0  # goes on, and reads no weights
    printed = capsys.readouterr().out
    assert "by name" not in printed and "last.ckpt continues with training.epochs 2 (before: 1)" in printed
    tuned = out / "checkpoints" / "best.ckpt"
    assert main(["eval", "--ckpt", str(tuned), "--split", "test", "--out", str(tmp_path / "eval")]) == 0
    metrics = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    assert list(metrics["per_class"]) == ["Circle", "box", "triangle", "ring"]
    photo = data / "images" / "val" / "000001.jpg"
    assert main(["predict", "--ckpt", str(tuned), str(photo), "--out", str(tmp_path / "predicted")]) == 0


def test_the_network_of_weights_needs_weights(config, tmp_path, capsys):
    error = mistake(capsys, "train", "-c", config, "--model", "from-weights", "--out", tmp_path / "run")
    assert error == "--model from-weights: name the file with --weights FILE"


# ---- distributed -----------------------------------------------------------------------------------------------------


def two_processes(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command under torchrun, on this machine only."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1"]
    done = subprocess.run(
        [*launcher, f"--master-port={port}", "-m", "detect", *map(str, arguments)],
        capture_output=True, text=True, timeout=120, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.slow
def test_two_processes_train_and_evaluate_like_one(config, tmp_path):
    out = tmp_path / "run"
    done = two_processes("train", "-c", config, "--out", out, "--data.test=test", "--data.batch_size=2")
    # Each line once, and no advertisement.
    assert done.stdout.count("trained in") == 1
    assert [line.split("  ")[0] for line in done.stderr.splitlines()] == ["epoch 1/1"]
    best = out / "checkpoints" / "best.ckpt"
    assert main(["eval", "--ckpt", str(best), "--split", "test", "--out", str(tmp_path / "one")]) == 0
    # Equal up to rounding: the order of summation in a convolution depends on the number of threads.
    for name in ("metrics.json", "predictions.json"):
        together, alone = (
            list(leaves(json.loads((folder / name).read_text()))) for folder in (out / "eval", tmp_path / "one")
        )
        assert [place for place, _ in together] == [place for place, _ in alone]
        for (_, one), (_, other) in zip(together, alone, strict=True):
            assert one == (pytest.approx(other, rel=1e-5, abs=1e-5) if isinstance(other, float) else other)


def leaves(value: object, place: tuple[object, ...] = ()) -> Iterator[tuple[tuple[object, ...], object]]:
    """Yield the path and value of every leaf of a JSON document."""
    if isinstance(value, dict | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(part, (*place, key))
    else:
        yield place, value


def test_a_run_is_resumed_only_with_its_own_network(run, capsys):
    before = (run / "config.yaml").read_text()
    assert main(["train", "--resume", "--out", str(run), "--model.box_head.channels", "16"]) == 2
    assert "another network than the config" in capsys.readouterr().err
    assert (run / "config.yaml").read_text() == before


def test_frozen_norms_without_weights_are_mentioned(capsys):
    for norm, weights, mentioned in (
        ("frozen", None, True),
        ("batch", None, False),
        ("frozen", "IMAGENET1K_V1", False),
    ):
        _print_notes(Config(model=FasterRCNNOptions(backbone=ResNetOptions(18, norm=norm, weights=weights))))
        assert ("frozen norms without weights do not normalise" in capsys.readouterr().out) == mentioned


def test_formats_are_listed_and_described(capsys):
    assert main(["data", "formats"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == list(FORMATS)
    assert main(["data", "formats", "labelme"]) == 0
    assert capsys.readouterr().out.startswith("LabelMe")
    assert "choose coco, voc, yolo" in mistake(capsys, "data", "formats", "none")
