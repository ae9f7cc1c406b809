"""Printed tables, files and picture of a classifier's results."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console

from detect.data.formats.imagefolder import ImageClasses
from detect.evaluation.classification import ClassificationEvaluator
from detect.report.classification import draw_confusion, print_classification, write_classification
from detect.structures import ClassificationBatch


def evaluated(labels: list[int], logits: torch.Tensor) -> ClassificationEvaluator:
    names = tuple(f"class {label}" for label in range(logits.shape[1]))
    paths = tuple(Path(f"data/{index}.jpg") for index in range(len(labels)))
    evaluator = ClassificationEvaluator(ImageClasses("data", "val", names, paths, np.array(labels, np.int64)))
    images = torch.zeros(len(labels), 3, 1, 1, dtype=torch.uint8)
    evaluator.update(ClassificationBatch(images, torch.tensor(labels), torch.arange(len(labels))), logits)
    return evaluator


def printed(metrics) -> list[str]:
    page = io.StringIO()
    print_classification(metrics, Console(file=page, width=80))
    return [" ".join(line.split()) for line in page.getvalue().splitlines()]


def test_tables():
    logits = torch.tensor([[2.0, 1, 0, 0], [0, 3, 0, 0], [0, 3, 0, 0], [0, 1, 0, -1]])
    lines = printed(evaluated([0, 0, 1, 2], logits).compute())
    assert "top1 50.0 the true class is the best prediction" in lines
    assert "top5 100.0 the true class is among all 4, which is always true" in lines
    assert "class images recall precision" in lines and "class 1 1 100.0 33.3" in lines and "class 3 0 – –" in lines


def test_of_many_classes_those_with_the_lowest_recall_are_printed():
    labels = torch.arange(50)
    logits = torch.nn.functional.one_hot(labels, 60).float()
    logits[7, 8] = 9
    lines = printed(evaluated(labels.tolist(), logits).compute())
    assert "the 40 classes of 60 with the lowest recall" in lines
    rows = lines[lines.index("class images recall precision") + 1 :]
    assert len(rows) == 40 and rows[:2] == ["class 7 1 0.0 –", "class 0 1 100.0 100.0"]


def test_files(tmp_path):
    evaluator = evaluated([1, 0], torch.tensor([[0.0, 0.0], [0.0, np.log(3.0)]]))
    metrics = evaluator.compute()
    write_classification(tmp_path / "eval", metrics, evaluator)
    text = (tmp_path / "eval" / "metrics.json").read_text()
    assert json.loads(text) == metrics and "[0, 1],\n" in text
    with (tmp_path / "eval" / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    first = {"image": str(Path("data/0.jpg")), "truth": "class 1", "predicted": "class 0", "probability": "0.5000"}
    second = {"image": str(Path("data/1.jpg")), "truth": "class 0", "predicted": "class 1", "probability": "0.7500"}
    assert rows == [first, second]
    with Image.open(tmp_path / "eval" / "confusion.png") as picture:
        assert min(picture.size) > 300


def test_a_picture_of_one_class_with_a_hostile_name(tmp_path):
    draw_confusion(tmp_path / "one.png", np.array([[3]]), ["$\\frac{\x1b" + "x" * 99], "$ of $_")
    with Image.open(tmp_path / "one.png") as picture:
        assert max(picture.size) < 2000
