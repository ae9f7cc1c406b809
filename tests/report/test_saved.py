"""Evaluations read back, and the pages written from them."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detect.cli import main
from detect.data.read import read
from detect.errors import UserError
from detect.evaluation.coco import METRICS, Prediction, coco_ground_truth, coco_results, evaluate_coco
from detect.evaluation.voc import evaluate_voc
from detect.prediction.result import Result
from detect.prediction.result_files import coco_writer
from detect.report.saved import read_evaluations
from detect.report.write import Origin, report_data, training_curves

CLASSES = ("square", "circle")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Write a data set of six images with two objects each."""
    root = tmp_path_factory.mktemp("data") / "set"
    (root / "images").mkdir(parents=True)
    (root / "annotations").mkdir()
    random = np.random.default_rng(0)
    annotations = []
    for id in range(6):
        Image.fromarray(random.integers(0, 255, (60, 80, 3), dtype=np.uint8)).save(root / "images" / f"{id}.png")
        for label in (0, 1):
            box = [5.0 + 40 * label, 10.0 + id, 20.0, 25.0]
            annotations.append({"id": len(annotations) + 1, "image_id": id, "category_id": 4 - label, "bbox": box})
    for annotation in annotations:
        annotation |= {"area": 500.0, "iscrowd": 0}
    images = [{"id": id, "file_name": f"{id}.png", "width": 80, "height": 60} for id in range(6)]
    categories = [{"id": 4 - label, "name": name} for label, name in enumerate(CLASSES)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations" / "instances_test.json").write_text(json.dumps(content))
    return root


def evaluate(root: Path, folder: Path, shift: float) -> Path:
    """Write the folder of an evaluation, as `detect eval` does, with every box shifted by `shift` pixels."""
    dataset = read(root, "test", classes=CLASSES)
    predictions = [
        Prediction(record.id, record.boxes + np.float32(shift), np.full(2, 0.75, np.float32), record.labels)
        for record in dataset.records
    ]
    folder.mkdir(parents=True)
    metrics = evaluate_coco(dataset, predictions) | evaluate_voc(dataset, predictions)
    metrics["evaluation"] = {"root": str(root), "split": "test", "checkpoint": "best.ckpt"}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "predictions.json").write_text(json.dumps(coco_results(predictions, dataset)))
    return folder


def test_metrics_equal_the_evaluation_to_the_last_bit(root, tmp_path):
    evaluate(root, tmp_path / "run" / "eval", 1.3)
    (run,) = read_evaluations([tmp_path / "run"], None)
    before = json.loads((tmp_path / "run" / "eval" / "metrics.json").read_text())
    del before["evaluation"]
    assert run.metrics == before
    assert (run.name, run.dataset.classes, run.checkpoint) == ("run", CLASSES, Path("best.ckpt"))


def test_names_are_as_short_as_possible(root, tmp_path):
    one, two = (evaluate(root, tmp_path / name / "eval", 1) for name in ("one", "two"))
    assert [run.name for run in read_evaluations([one, two], None)] == ["one/eval", "two/eval"]
    with pytest.raises(UserError, match="is given twice"):
        read_evaluations([one, one], None)


def test_evaluations_that_cannot_be_compared(root, tmp_path):
    one, two = (evaluate(root, tmp_path / name, 1) for name in ("one", "two"))
    with pytest.raises(UserError, match=r"none: no predictions\.json"):
        read_evaluations([one, tmp_path / "none"], None)
    metrics = json.loads((two / "metrics.json").read_text())
    metrics["evaluation"]["split"] = "val"
    (two / "metrics.json").write_text(json.dumps(metrics))
    with pytest.raises(UserError, match=r"two is an evaluation of .*, split val, but .*one is not"):
        read_evaluations([one, two], None)
    (two / "metrics.json").write_text("[")
    with pytest.raises(UserError, match=r"two: no metrics\.json.* --ground-truth"):
        read_evaluations([one, two], None)


def test_the_command_on_files(root, tmp_path, capsys):
    results = evaluate(root, tmp_path / "eval", 1.3) / "predictions.json"
    ground_truth = root / "annotations" / "instances_test.json"
    out = tmp_path / "report"
    arguments = ["report", "--ground-truth", str(ground_truth), "--predictions", str(results), "--out", str(out)]
    assert main([*arguments, "--images", str(root / "images")]) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["AP"] == json.loads((results.parent / "metrics.json").read_text())["AP"]
    page = (out / "report.html").read_text()
    assert "instances_test: predictions" in page and "detect report --ground-truth" in page
    assert str(out / "report.html") in capsys.readouterr().out
    assert main(arguments) == 2 and "not empty" in capsys.readouterr().err


def test_the_command_compares(root, tmp_path, capsys):
    one, two = (evaluate(root, tmp_path / name, shift) for name, shift in (("one", 6), ("two", 1)))
    assert main(["report", "--compare", str(one), str(two), "--out", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert "set test: one, two" in page and '"score":0.75,' in page
    ground_truth = tmp_path / "truth.json"
    ground_truth.write_text(json.dumps(coco_ground_truth(read(root, "test"))))
    files = [str(folder / "predictions.json") for folder in (one, two)]
    assert (
        main(["report", "--compare", *files, "--ground-truth", str(ground_truth), "--out", str(tmp_path / "files")])
        == 0
    )
    assert "one/predictions" in (tmp_path / "files" / "report.html").read_text()


def test_the_results_of_predict_are_matched_by_name(root, tmp_path, capsys):
    """`detect predict` numbers images from 1 in their order; here the ground truth numbers them otherwise."""
    dataset = read(root, "test", classes=CLASSES)
    (tmp_path / "run" / "parts").mkdir(parents=True)
    with coco_writer(tmp_path / "run", tmp_path / "run" / "parts", CLASSES, (1, 2)) as save:
        for number, record in enumerate(reversed(dataset.records), start=1):
            size, scores = (record.height, record.width), np.full(len(record.boxes), 0.75, np.float32)
            save(number, Result(record.boxes, scores, record.labels, CLASSES, (1, 2), size, str(record.path)))
    results = tmp_path / "run" / "predictions.json"
    arguments = ["report", "--ground-truth", str(root / "annotations" / "instances_test.json"), "--predictions"]
    assert main([*arguments, str(results), "--out", str(tmp_path / "a")]) == 0
    assert json.loads((tmp_path / "a" / "metrics.json").read_text())["AP"] == 1
    assert main(["report", "--truth", *arguments[2:], str(results), "--out", str(tmp_path / "b")]) == 0  # the old name
    compared = ["report", "--compare", str(tmp_path / "run"), str(results), *arguments[1:3]]
    assert main([*compared, "--out", str(tmp_path / "c")]) == 0
    (tmp_path / "run" / "images.json").write_text("{}")
    assert main([*arguments, str(results), "--out", str(tmp_path / "d")]) == 2
    assert "images.json: images: Field required; give the one of detect predict, or remove" in capsys.readouterr().err
    (tmp_path / "run" / "images.json").unlink()
    assert main([*arguments, str(results), "--out", str(tmp_path / "e")]) == 2
    assert "has category_id" in capsys.readouterr().err


def test_results_that_fit_no_object_are_not_reported_in_silence(root, tmp_path, capsys):
    results = evaluate(root, tmp_path / "eval", 300) / "predictions.json"
    arguments = ["report", "--ground-truth", str(root / "annotations" / "instances_test.json")]
    assert main([*arguments, "--predictions", str(results), "--out", str(tmp_path / "out")]) == 0
    note = f"detect: {results}: no box fits an object; are its image ids those of the ground truth?\n"
    assert capsys.readouterr().err == note


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ground-truth", "a.json"], "give --ground-truth and --predictions"),
        (["--compare", "runs/a"], "two or more runs"),
        (["--compare", "runs/a", "runs/b", "--predictions", "a.json"], "give the results files to --compare instead"),
        (["--ground-truth", "a.json", "--predictions", "b.json"], "a.json: No such file"),
        (["--ground-truth", "a.json", "--predictions", "b.json", "--images", "nowhere"], "nowhere: no such folder"),
    ],
)
def test_errors_are_one_line_and_nothing_is_written(tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(["report", *arguments, "--out", "out"]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not Path("out").exists()


def test_the_data_of_a_report(root, tmp_path):
    evaluate(root, tmp_path / "eval", 1.3)
    (run,) = read_evaluations([tmp_path / "eval"], None)
    (tmp_path / "metrics.csv").write_text("AP,epoch,loss,lr-SGD,step\n,,,0.1,9\n,0,2.5,,9\n0.25,0,,,19\n")
    origin = Origin("set test", Path("best.ckpt"), "a: 1", tmp_path, "detect eval")
    data = report_data(run.dataset, run.predictions, origin)
    json.dumps(data, allow_nan=False)
    expected = {rule: run.metrics[rule]["mAP"] for rule in ("VOC07", "VOC")} | {
        name: run.metrics[name] for name in METRICS
    }
    values = {metric["name"]: metric["value"] for metric in data["metrics"]}
    assert values.keys() == expected.keys()
    for name, value in values.items():
        assert value == (None if expected[name] is None else pytest.approx(expected[name], rel=1e-12))
    subject = data["subject"]
    assert (subject["images"], subject["ground_truths"], subject["detections"], subject["split"]) == (6, 12, 12, "test")
    assert data["proposals"] is None and data["config"] == "a: 1"
    assert data["thresholds"]["best"] == 0.75  # the score of all detections
    assert data["training"]["series"] == [
        {"name": "lr-SGD", "group": "learning rate", "points": [[9, 0.1]]},
        {"name": "loss", "group": "losses", "points": [[9, 2.5]]},
        {"name": "AP", "group": "metrics", "points": [[19, 0.25]]},
    ]
    assert training_curves(tmp_path / "none.csv") is None


def test_values_that_are_not_finite_are_not_in_the_curves(tmp_path):
    """A model that has diverged has such losses in validation; JSON has no such numbers."""
    (tmp_path / "metrics.csv").write_text("step,val_loss,AP\n9,2.5,0.0\n19,nan,0.0\n29,inf,\n", encoding="utf-8")
    assert training_curves(tmp_path / "metrics.csv") == {
        "x": "step",
        "series": [
            {"name": "val_loss", "group": "losses", "points": [[9, 2.5]]},
            {"name": "AP", "group": "metrics", "points": [[9, 0.0], [19, 0.0]]},
        ],
    }


def test_chosen_classes_of_results(root, tmp_path, capsys):
    folder = evaluate(root, tmp_path / "run" / "eval", 3.0)
    truth, results = root / "annotations" / "instances_test.json", folder / "predictions.json"
    words = ["report", "--truth", str(truth), "--predictions", str(results), "--out"]
    assert main([*words, str(tmp_path / "all")]) == 0
    assert main([*words, str(tmp_path / "one"), "--classes", "circle"]) == 0
    whole, one = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("all", "one"))
    assert one["per_class"] == {"circle": whole["per_class"]["circle"]}
    assert one["AP"] == pytest.approx(whole["per_class"]["circle"]["AP"])
    assert main([*words, str(tmp_path / "none"), "--classes", "circles"]) == 2
    assert "classes: the ground truth has no class circles; did you mean circle?" in capsys.readouterr().err
