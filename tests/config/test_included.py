"""Configs of the package by name."""

import re
from pathlib import Path

import pytest

from detect.cli import main
from detect.compare.entries import read_entries
from detect.config import included, load_config, load_experiment
from detect.config.included import FOLDER, config_names, find_config, included_configs
from detect.curation.check import run_check
from detect.curation.shapes import make_shapes
from detect.errors import UserError


@pytest.mark.parametrize("name", config_names())
def test_a_config_is_found_by_its_name(name):
    assert find_config(Path(name)) == FOLDER / f"{name}.yaml"
    assert load_experiment(Path(name)) == load_experiment(FOLDER / f"{name}.yaml")


def test_the_end_of_a_name_is_enough():
    assert find_config(Path("faster_rcnn_r50_fpn")) == FOLDER / "coco/faster_rcnn_r50_fpn.yaml"
    assert find_config(Path("rcnn_r50_fpn")) == Path("rcnn_r50_fpn")  # whole parts only


def test_a_path_stays_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bccd").mkdir()
    (tmp_path / "bccd" / "rcnn.yaml").write_text("training: {epochs: 77}")
    assert load_config(Path("bccd/rcnn.yaml")).training.epochs == 77
    assert load_config(tmp_path / "bccd" / "rcnn.yaml").training.epochs == 77
    assert load_config(Path("bccd/rcnn")).training.epochs != 77


def test_an_ambiguous_name_lists_its_configs(tmp_path, monkeypatch):
    for folder in ("a", "b", "c"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / ("rcnn.yaml" if folder != "c" else "other.yaml")).write_text("training: {}")
    monkeypatch.setattr(included, "FOLDER", tmp_path)
    with pytest.raises(UserError, match=r"^rcnn: 2 configs have this name; give one of a/rcnn, b/rcnn$"):
        load_config(Path("rcnn"))
    assert find_config(Path("other")) == tmp_path / "c" / "other.yaml"


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("bccd/faster_rcn", "bccd/faster_rcnn"),
        ("configs/bccd/faster_rcnn.yaml", "bccd/faster_rcnn"),
        ("elsewhere/resnet18_small.yaml", "classify/resnet18_small"),
        ("faster_rcnn_r50_fp", "coco/faster_rcnn_r50_fpn"),
    ],
)
def test_an_unknown_name_suggests_near_ones(name, near):
    with pytest.raises(UserError, match=f"^{name}: no such file, and no config has this name; did you mean ") as caught:
        load_config(Path(name))
    assert near in str(caught.value) and str(caught.value).endswith("? `detect configs` lists them")


def test_a_name_like_no_other_suggests_nothing():
    with pytest.raises(UserError, match=r"^xyzzy: no such file, and no config has this name; `detect configs` lists "):
        load_config(Path("xyzzy"))


def test_commands_take_names(tmp_path, capsys):
    assert main(["model", "lenet_digits", "--classes", "10"]) == 0
    assert "61,706" in capsys.readouterr().out
    data = make_shapes(tmp_path / "data", images={"train": 2}, progress=False)
    assert run_check(data, config=Path("coco/faster_rcnn_r50_fpn"), json_file=tmp_path / "f.json") in (0, 1)
    assert main(["train", "-c", "bccd/faster_rcn", "--out", str(tmp_path / "run")]) == 2
    assert "did you mean bccd/faster_rcnn" in capsys.readouterr().err and not (tmp_path / "run").exists()
    entries = read_entries([Path("bccd/rcnn"), Path("bccd/faster_rcnn")], tmp_path, ["--data.root=data/bccd"])
    assert [entry.name for entry in entries] == ["rcnn", "faster_rcnn"]


def test_the_list_breaks_no_name_at_80_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["configs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    names = [line.split()[0] for line in lines[1:] if not line.startswith(" ")]
    assert names == config_names()
    row = next(line for line in lines if line.startswith("bccd/fast_rcnn "))
    assert row.rstrip().endswith("AP 0.517, AP50 0.844")


@pytest.mark.parametrize("config", included_configs(), ids=lambda config: config.name)
def test_the_first_line_of_a_config_says_what_it_trains(config):
    assert re.fullmatch(r"[A-Z].{20,117}\.", config.title)
    text = (FOLDER / f"{config.name}.yaml").read_text(encoding="utf-8")
    result = re.search(r"^# Result: (.*)", text, re.MULTILINE)[1]
    assert result.startswith(config.result) and bool(config.result) == (not result.startswith("not measured"))
