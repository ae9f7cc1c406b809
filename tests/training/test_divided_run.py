"""A run with `data.val 0.2`: its division is recorded, and found by resume, evaluation and reports from anywhere."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from detect.checkpoint import load_checkpoint
from detect.cli import main
from detect.config import config_to_yaml, load_config
from detect.curation.divide import divide
from detect.curation.shapes import make_shapes
from detect.data.datamodule import DetectionData
from detect.training.fit import fit
from detect.training.module import DetectorModule

VAL = 0.4


@pytest.fixture(scope="module")
def folder(tmp_path_factory, config) -> Path:
    """Working directory with a data set of one split, a config with relative paths, and a finished run."""
    folder = tmp_path_factory.mktemp("divided")
    make_shapes(folder / "photos", images={"all": 8}, size=(64, 96), progress=False)
    data = replace(config.data, root=Path("photos"), val=VAL)
    (folder / "config.yaml").write_text(config_to_yaml(replace(config, data=data)))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["train", "-c", "config.yaml", "--out", "run"]) == 0
    return folder


def failed(capsys, *words) -> str:
    assert main([str(word) for word in words]) == 2
    return capsys.readouterr().err


def parts(run: Path) -> dict:
    content = json.loads((run / "division.json").read_text())
    assert (content["split"], content["seed"], content["fractions"]) == ("all", 0, {"val": VAL})
    (images,) = content["images"]
    return images


def test_the_run_records_its_division_and_absolute_paths(folder):
    images = parts(folder / "run")
    assert len(images["train"]) == 5 and len(images["val"]) == 3
    assert not set(images["train"]) & set(images["val"])
    config, best = load_config(folder / "run" / "config.yaml"), folder / "run" / "checkpoints" / "best.ckpt"
    assert config.data.root == folder / "photos" and config.data.division == folder / "run" / "division.json"
    assert load_checkpoint(best).config == config
    evaluation = json.loads((folder / "run" / "eval" / "metrics.json").read_text())["evaluation"]
    assert evaluation["root"] == str(folder / "photos") and (evaluation["split"], evaluation["images"]) == ("val", 3)


def test_evaluation_from_another_directory_uses_the_same_images(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    best = folder / "run" / "checkpoints" / "best.ckpt"
    for split, count in (("val", 3), ("train", 5), ("all", 8)):
        assert main(["eval", "--ckpt", str(best), "--split", split, "--out", split]) == 0
        metrics = json.loads((tmp_path / split / "metrics.json").read_text())
        assert metrics["evaluation"]["images"] == count
    first = json.loads((folder / "run" / "eval" / "predictions.json").read_text())
    assert json.loads((tmp_path / "val" / "predictions.json").read_text()) == first
    assert main(["report", "--compare", str(folder / "run"), "val", "--out", "report"]) == 0
    assert "all is an evaluation of" in failed(capsys, "report", "--compare", folder / "run", "all", "--out", "other")


def test_a_moved_run_is_evaluated_and_resumed(folder, tmp_path, monkeypatch, capsys):
    run, division = tmp_path / "moved", (folder / "run" / "division.json").read_text()
    (folder / "run").rename(run)
    try:
        monkeypatch.chdir(tmp_path)
        assert main(["eval", "--ckpt", "moved/checkpoints/best.ckpt", "--out", "eval"]) == 0
        assert main(["train", "--out", "moved", "--resume"]) == 0
        assert load_config(run / "config.yaml").data.division == run / "division.json"
        other = make_shapes(tmp_path / "other", images={"all": 2}, size=(64, 96), progress=False)
        words = ["eval", "--ckpt", run / "checkpoints" / "best.ckpt", "--data.root", other, "--out", "x"]
        error = failed(capsys, *words)
        assert (
            "moved/division.json: " in error
            and " images of the part val are not in" in error
            and "--data.division null" in error
        )
        assert main([*map(str, words), "--data.division=null", "--split", "all"]) == 0
        (run / "division.json").unlink()
        assert "division.json: No such file or directory: the division of the data; restore it" in failed(
            capsys, "eval", "--ckpt", run / "checkpoints" / "best.ckpt", "--out", "y"
        )
    finally:
        run.rename(folder / "run")
        (folder / "run" / "division.json").write_text(division)


def test_a_resumed_run_ends_where_the_whole_one_does(config, tmp_path, monkeypatch):
    """Even if there are new images in the meantime."""
    root = make_shapes(tmp_path / "photos", images={"all": 8}, size=(64, 96), progress=False)
    divided = replace(config, data=replace(config.data, root=root, val=VAL))

    def run(out, given=divided, divide=divide, resume=False):
        fit(given, DetectionData(given.data, seed=given.training.seed, divide=divide), out, resume)
        return torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)

    whole = run(tmp_path / "whole")
    with monkeypatch.context() as patch:

        def stop_in_second_epoch(self) -> None:
            if self.current_epoch == 1:
                raise RuntimeError("the power went")

        patch.setattr(DetectorModule, "on_train_epoch_start", stop_in_second_epoch)
        with pytest.raises(RuntimeError, match="the power went"):
            run(tmp_path / "other")
    annotations = root / "annotations" / "instances_all.json"
    content = json.loads(annotations.read_text())
    image = next((root).rglob(content["images"][0]["file_name"]))
    image.with_name("new.jpg").write_bytes(image.read_bytes())
    content["images"].append({**content["images"][0], "id": 99, "file_name": "new.jpg"})
    annotations.write_text(json.dumps(content))
    other = run(tmp_path / "other", load_config(tmp_path / "other" / "config.yaml"), divide=None, resume=True)
    for key, value in whole["state_dict"].items():
        assert torch.equal(value, other["state_dict"][key]), key
    assert parts(tmp_path / "whole") == parts(tmp_path / "other")


def test_another_spelling_of_the_data_is_no_change(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    before = (folder / "run" / "division.json").read_text()
    words = ["train", "-c", "config.yaml", "--out", "run", "--resume", "--data.root", "./photos"]
    assert main(words) == 0 and (folder / "run" / "division.json").read_text() == before
    error = failed(capsys, *words, "--data.val", "0.25")
    assert (
        f"division.json: it divides with val {VAL}, not val 0.25; give the same fractions, or begin a new run" in error
    )


def test_a_new_run_with_the_config_of_another_has_its_division(folder, tmp_path):
    assert main(["train", "-c", str(folder / "run" / "config.yaml"), "--out", str(tmp_path / "run")]) == 0
    assert parts(tmp_path / "run") == parts(folder / "run")
    written = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert written["data"]["division"] == str(tmp_path / "run" / "division.json")


def test_a_split_without_validation_says_how_to_divide(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    error = failed(capsys, "train", "-c", "config.yaml", "--out", tmp_path / "run", "--data.val", "val")
    assert "photos: there is no split val; hold out a part of the training split with --data.val 0.2" in error
    assert not (tmp_path / "run").exists()
