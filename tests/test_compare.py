"""Comparison of the three detectors by the command, interrupted and continued; timing runs in this process."""

import json
from concurrent.futures import Future
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from detect.cli import main
from detect.compare import comparison as module
from detect.compare.entries import read_entries, share_division, unique_names
from detect.curation.shapes import make_shapes
from detect.errors import UserError
from detect.prediction import timing
from detect.prediction.timing import STAGES, Cost
from detect.proposals.store import ProposalStore
from detect.training import clock
from detect.training.module import DetectorModule

BACKBONE = {"name": "resnet", "depth": 18, "norm": "batch", "train_stages": 5}
COUNTS = {"pre_nms_top_k": 100, "post_nms_top_k": 20}
HEAD = {"layers": 1, "channels": 32}
MODELS = {
    "rcnn": {
        "crop": {"size": 32, "context": 2},
        "region_head": {"batch_size_per_image": 16, "delta_weights": [1, 1, 1, 1]},
    },
    "faster_rcnn": {
        "rpn": {"anchor_sizes": [8, 16, 32, 48, 64], "training": COUNTS, "testing": COUNTS},
        "box_head": HEAD,
        "region_head": {"batch_size_per_image": 16},
        "postprocess": {"score_threshold": 0.01},
    },
    "fast_rcnn": {"box_head": HEAD, "postprocess": {"score_threshold": 0.01}},
}
DATA = {"short_side": [64], "long_side": 96, "canvases": 1, "workers": 0, "max_proposals": 40}
RECIPE = {"name": "rcnn_stages", "svm": {"hard_margin": -100, "evict_margin": -100}}
TRAINING = {"epochs": 1, "warmup_steps": 0, "learning_rate": 0.01, "accelerator": "cpu", "devices": 1}


class Inline:
    """Executor that runs its work in this process."""

    def __init__(self, *_, **__):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def submit(self, function, *arguments) -> Future:
        done: Future = Future()
        done.set_result(function(*arguments))
        return done


def fake_measure(*_) -> Cost:
    return Cost(1.0, dict.fromkeys(STAGES, 0.25), None)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shapes"
    return make_shapes(folder, images={"train": 4, "val": 3}, size=(64, 96), progress=False)


@pytest.fixture(scope="module")
def configs(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("configs")
    for name, model in MODELS.items():
        training = TRAINING | ({"recipe": RECIPE} if name == "rcnn" else {})
        content = {"model": {"name": name, "backbone": BACKBONE, **model}, "data": DATA, "training": training}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))
    return {name: str(folder / f"{name}.yaml") for name in MODELS}


@pytest.fixture(scope="module")
def compared(shapes, configs, tmp_path_factory):
    """Interrupt a comparison while it times the second detector, and complete it with the same command."""
    out = tmp_path_factory.mktemp("runs") / "compared"
    # The value of an option precedes the configs and must not be mistaken for one.
    words = ["compare", "--data.root", str(shapes), *configs.values(), "--out", str(out), "--images", "2"]
    fitted, measured = [], []

    def fit(config, data, folder, resume):
        fitted.append(folder.name)
        return original_fit(config, data, folder, resume)

    def measure(checkpoint, *rest):
        measured.append(checkpoint)
        if len(measured) == 2:
            raise KeyboardInterrupt
        return original_measure(checkpoint, *rest)

    original_fit, original_measure = module.fit, module.measure_cost
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "ProcessPoolExecutor", Inline)
        patch.setattr(module, "fit", fit)
        patch.setattr(module, "measure_cost", measure)
        assert main(words) == 130
        before, fitted_before = json.loads((out / "compare.json").read_text()), list(fitted)
        assert main(words) == 0
    after = json.loads((out / "compare.json").read_text())
    measured = [checkpoint.parents[1].name for checkpoint in measured]
    return SimpleNamespace(
        out=out, words=words, before=before, after=after, fitted_before=fitted_before, fitted=fitted, measured=measured
    )


def test_rows_are_in_the_order_of_the_sources_with_metrics_first(compared, shapes):
    content, rows = compared.after, compared.after["rows"]
    assert [row["config"] for row in rows] == [row["detector"] for row in rows] == list(MODELS)
    for row in rows:
        assert list(row)[:4] == ["config", "AP", "AP50", "test_seconds_per_image"]
        assert all(0 <= row[name] <= 1 for name in ("AP", "AP50", "VOC07", "recall@0.5@2000"))
        assert row["training_seconds"] > 0 and list(row["test_seconds"]) == list(STAGES)
        assert sum(row["test_seconds"].values()) == pytest.approx(row["test_seconds_per_image"])
        assert row["checkpoint_bytes"] == Path(row["checkpoint"]).stat().st_size
    assert content["data"] == str(shapes) and content["split"] == "val" and content["finished"]
    assert (content["images"], content["timed_images"]) == (3, 2)
    assert content["machine"]["device"] and content["versions"]["torch"] == version("torch")
    assert content["command"].startswith(f"detect compare {Path(compared.words[3])}")
    assert (compared.out / "compare.png").read_bytes().startswith(b"\x89PNG")


def test_finished_work_is_not_repeated(compared):
    assert compared.fitted_before == ["rcnn", "faster_rcnn"] and compared.fitted == list(MODELS)
    assert compared.measured == ["rcnn", "faster_rcnn", "faster_rcnn", "fast_rcnn"]
    assert not compared.before["finished"] and compared.before["rows"] == compared.after["rows"][:1]


def test_one_store_is_computed_for_detectors_without_an_rpn(compared):
    store = compared.out / "proposals.db"
    with closing(ProposalStore(store)) as opened:
        assert len(opened) == 7
    for row in compared.after["rows"]:
        config = yaml.safe_load((compared.out / row["config"] / "config.yaml").read_text())
        proposes = row["config"] == "faster_rcnn"
        assert config["data"]["proposals"] == (None if proposes else str(store))
        assert row["proposals_bytes_per_image"] == (None if proposes else store.stat().st_size / 7)


@pytest.mark.parametrize("name", MODELS)
def test_metrics_equal_those_of_eval(compared, tmp_path, name):
    checkpoint = compared.out / name / "checkpoints" / "best.ckpt"
    assert main(["eval", "--ckpt", str(checkpoint), "--out", str(tmp_path)]) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    (row,) = [row for row in compared.after["rows"] if row["config"] == name]
    assert [metrics[key] for key in ("AP", "AP50", "recall@0.5@2000")] == [
        row["AP"],
        row["AP50"],
        row["recall@0.5@2000"],
    ]
    assert metrics["VOC07"]["mAP"] == row["VOC07"]
    assert (compared.out / name / "eval" / "metrics.json").read_text() == (tmp_path / "metrics.json").read_text()


def test_a_complete_comparison_is_measured_again_without_training(compared, capsys, monkeypatch):
    content = (compared.out / "compare.json").read_text()
    monkeypatch.setattr(module, "fit", None)
    monkeypatch.setattr(module, "measure_cost", fake_measure)
    assert main(compared.words) == 0
    assert "0 images added, 7 already present" in capsys.readouterr().out
    rows = json.loads((compared.out / "compare.json").read_text())["rows"]
    for row, before in zip(rows, compared.after["rows"], strict=True):
        assert row["test_seconds_per_image"] == 1.0 and row["peak_memory_bytes"] is None
        assert (row["AP"], row["training_seconds"]) == (before["AP"], before["training_seconds"])
    (compared.out / "compare.json").write_text(content)


def test_checkpoints_are_compared_without_training(compared, configs, tmp_path, monkeypatch, capsys):
    """Options of data and model apply; the RPN ignores the store that is given for all."""
    monkeypatch.setattr(module, "measure_cost", fake_measure)
    checkpoints = [str(compared.out / name / "checkpoints" / "best.ckpt") for name in ("faster_rcnn", "fast_rcnn")]
    words = ["compare", *checkpoints, "--out", str(tmp_path / "out"), "--model.postprocess.max_detections=1"]
    assert main([*words, f"--data.proposals={compared.out / 'proposals.db'}", "--split=train"]) == 0
    content = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert [row["config"] for row in content["rows"]] == ["faster_rcnn", "fast_rcnn"] and content["images"] == 4
    by_name = {row["config"]: row for row in compared.after["rows"]}
    for row in content["rows"]:
        assert row["training_seconds"] == by_name[row["config"]]["training_seconds"]
        predictions = json.loads((tmp_path / "out" / row["config"] / "eval" / "predictions.json").read_text())
        assert len(predictions) <= 4
    assert not (tmp_path / "out" / "proposals.db").exists()
    assert "checkpoints are already trained" in mistake(capsys, *words, "--training.epochs=2")


def test_an_unfinished_run_is_resumed(shapes, configs, tmp_path, monkeypatch):
    class KilledError(Exception):
        pass

    step, steps = DetectorModule.training_step, []

    def killed(self, *arguments):
        steps.append(1)
        if len(steps) == 4:
            raise KilledError
        return step(self, *arguments)

    monkeypatch.setattr(DetectorModule, "training_step", killed)
    monkeypatch.setattr(module, "measure_cost", fake_measure)
    out = tmp_path / "out"
    words = ["compare", configs["faster_rcnn"], "--out", str(out), f"--data.root={shapes}", "--training.epochs=2"]
    words.append("--data.batch_size=2")
    with pytest.raises(KilledError):
        main(words)
    assert not clock.finished(out / "faster_rcnn") and json.loads((out / "compare.json").read_text())["rows"] == []
    assert main(words) == 0
    assert len(steps) == 4 + 2  # one epoch of two steps, half of the next, and that one again
    assert json.loads((out / "compare.json").read_text())["rows"][0]["training_seconds"] == clock.seconds(
        out / "faster_rcnn"
    )


# ---- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        (["bccd/rcnn.yaml"], ["rcnn"]),
        (["bccd/rcnn.yaml", "voc/rcnn.yaml", "voc/fast.yaml"], ["bccd_rcnn", "voc_rcnn", "fast"]),
        (["a/bccd/rcnn.yaml", "b/bccd/rcnn.yaml", "voc/rcnn.yaml"], ["a_bccd_rcnn", "b_bccd_rcnn", "voc_rcnn"]),
        (["a/b_c.yaml", "a_b/c.yaml"], ["b_c", "c"]),
        (["x/a/b_c.yaml", "a_b/c.yaml", "d/c.yaml"], ["b_c", "a_b_c", "d_c"]),
        (["runs/one/checkpoints/best.ckpt", "runs/two/checkpoints/best.ckpt"], ["one", "two"]),
        (["runs/one/checkpoints/best.ckpt", "runs/one/checkpoints/last.ckpt"], ["one", "one_last"]),
        (["runs/one/checkpoints/best.ckpt", "svd.ckpt", "bccd/one.yaml"], ["runs_one", "svd", "bccd_one"]),
    ],
)
def test_names_are_short_and_unique(sources, expected):
    assert unique_names([Path(source) for source in sources]) == expected


def test_a_source_given_twice():
    with pytest.raises(UserError, match=r"^a/b\.yaml: given twice"):
        unique_names([Path("c.yaml"), Path("a/b.yaml"), Path("a/b.yaml")])


# ---- mistakes --------------------------------------------------------------------------------------------------------


def mistake(capsys, *words: object) -> str:
    """The only line on stderr of a command that ends with exit code 2."""
    capsys.readouterr()
    assert main([str(word) for word in words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("detect: error: ") and error.count("\n") == 1
    return error.removeprefix("detect: error: ").rstrip()


def test_mistakes_are_reported_before_any_work(shapes, configs, compared, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(module, "fit", None)
    monkeypatch.setattr(module, "propose", None)
    config, out, root = configs["faster_rcnn"], tmp_path / "out", f"--data.root={shapes}"
    best = compared.out / "faster_rcnn" / "checkpoints" / "best.ckpt"

    def wrong(*words: object, out: Path = out) -> str:
        return mistake(capsys, "compare", *words, "--out", out)

    assert wrong(root).startswith("compare: name the configs or checkpoints")
    assert wrong(config, "gone.yaml", root).startswith(
        "gone.yaml: no such file, and no config has this name; `detect configs` lists them"
    )
    assert wrong(config, "gone.ckpt", root).startswith("gone.ckpt: No such file")
    assert "there is no split tset" in wrong(config, root, "--split=tset")
    assert "--split: the configs name none for evaluation" in wrong(config, root, "--data.val=null")
    assert "did you mean training.epochs" in wrong(config, root, "--training.epohcs=1")
    assert "gone.pth: no such file" in wrong(config, root, "--model.backbone.weights=gone.pth")
    assert "given twice" in wrong(config, config, root)
    assert "--images: 0; time at least one image" in wrong(config, root, "--images=0")
    assert "give --training.devices 1" in wrong(config, root, "--training.devices=2")
    assert "and data; give one for all with --data.root" in wrong(config, best)
    other = make_shapes(tmp_path / "other", images={"train": 1, "val": 1}, size=(64, 96), progress=False)
    for file in other.glob("annotations/*.json"):
        content = json.loads(file.read_text())
        content["categories"].append({"id": 99, "name": "cat"})
        file.write_text(json.dumps(content))
    assert wrong(config, best, f"--data.root={other}").startswith(f"{best}: has 4 classes: circle, ")
    assert not out.exists()


def test_a_folder_that_holds_something_else(shapes, configs, compared, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(module, "fit", None)
    config, root = configs["faster_rcnn"], f"--data.root={shapes}"
    (tmp_path / "file").touch()
    for folder in (tmp_path, tmp_path / "file"):
        error = mistake(capsys, "compare", config, root, "--out", folder)
        assert "holds something other than a comparison; give another --out" in error
    changed = mistake(capsys, *compared.words, "--training.epochs=2")
    assert changed.startswith(f"{compared.out / 'rcnn'}: holds a run with training.epochs 1 instead of 2; give another")
    best = compared.out / "faster_rcnn" / "checkpoints" / "best.ckpt"
    assert "holds a run, but" in mistake(capsys, "compare", best, "--out", compared.out)
    assert json.loads((compared.out / "compare.json").read_text()) == compared.after


def test_all_detectors_share_one_division(configs, shapes, tmp_path):
    """It is made once, and a data folder in another spelling is the same."""
    (tmp_path / "link").symlink_to(shapes)
    sources = [Path(configs["faster_rcnn"])]
    for root in (shapes, tmp_path / "link"):
        content = yaml.safe_load(sources[0].read_text())
        content["data"] |= {"root": str(root), "val": 0.5}
        sources.append(tmp_path / f"{root.name}.yaml")
        sources[-1].write_text(yaml.safe_dump(content))
    one, other = share_division(read_entries(sources[1:], tmp_path / "out", []))
    assert one.division == other.division and one.division.fractions == {"val": 0.5}
    paths = [[record.path.name for record in entry.data().split("val").records] for entry in (one, other)]
    assert paths[0] == paths[1] and len(paths[0]) == 2
    with pytest.raises(UserError, match=r"^--data\.val: the configs differ: 0\.5 and val; give one for all"):
        read_entries(sources[:2], tmp_path / "out", [f"--data.root={shapes}"])
