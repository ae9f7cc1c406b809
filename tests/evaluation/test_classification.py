import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from sklearn.metrics import confusion_matrix, precision_score, recall_score, top_k_accuracy_score

from detect.data.formats.imagefolder import ImageClasses
from detect.evaluation.classification import (
    ClassificationEvaluator,
    draw_confusion,
    print_classification,
    write_classification,
)
from detect.structures import ClassificationBatch


def split_of(labels: list[int], classes: int, files: bool = False) -> ImageClasses:
    names = tuple(f"class {label}" for label in range(classes))
    paths = tuple(Path(f"data/{place}.jpg") for place in range(len(labels)))
    images = paths if files else np.zeros((len(labels), 1, 1, 3), np.uint8)
    return ImageClasses("made", "val", names, images, np.array(labels, np.int64))


def batch_of(dataset: ImageClasses, ids: list[int]) -> ClassificationBatch:
    images = torch.zeros(len(ids), 3, 1, 1, dtype=torch.uint8)
    return ClassificationBatch(images, torch.from_numpy(dataset.labels[ids]), torch.tensor(ids, dtype=torch.int64))


def evaluated(dataset: ImageClasses, logits: torch.Tensor, size: int = 7) -> ClassificationEvaluator:
    evaluator = ClassificationEvaluator(dataset)
    for ids in torch.arange(len(dataset)).split(size):
        evaluator.update(batch_of(dataset, ids.tolist()), logits[ids])
    return evaluator


def test_by_hand():
    dataset = split_of([0, 0, 1, 2], classes=4)
    logits = torch.tensor([[2.0, 1, 0, 0], [0, 3, 0, 0], [0, 3, 0, 0], [0, 1, 0, -1]])
    metrics = evaluated(dataset, logits).compute()
    assert (metrics["top1"], metrics["top5"]) == (0.5, 1.0)
    assert metrics["confusion"] == [[1, 1, 0, 0], [0, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    assert metrics["per_class"] == {
        "class 0": {"images": 2, "recall": 0.5, "precision": 1.0},
        "class 1": {"images": 1, "recall": 1.0, "precision": 1 / 3},
        "class 2": {"images": 1, "recall": 0.0, "precision": None},
        "class 3": {"images": 0, "recall": None, "precision": None},
    }


def test_nothing_was_seen():
    evaluator = ClassificationEvaluator(split_of([0, 1], classes=2))
    evaluator.gather()
    metrics = evaluator.compute()
    assert metrics["top1"] is None and metrics["top5"] is None and metrics["confusion"] == [[0, 0], [0, 0]]
    assert list(evaluator.predictions()) == []


@pytest.mark.parametrize("classes", [3, 5, 6, 30])
def test_is_scikit_learns(classes):
    truths = torch.cat([torch.arange(classes), torch.randint(classes, (90,))])
    logits = torch.randn(len(truths), classes) + torch.nn.functional.one_hot(truths, classes)
    metrics = evaluated(split_of(truths.tolist(), classes), logits).compute()
    predicted, labels = logits.argmax(dim=1), range(classes)
    np.testing.assert_array_equal(metrics["confusion"], confusion_matrix(truths, predicted, labels=labels))
    assert metrics["top1"] == pytest.approx(top_k_accuracy_score(truths, logits, k=1, labels=labels))
    if classes > 5:
        assert metrics["top5"] == pytest.approx(top_k_accuracy_score(truths, logits, k=5, labels=labels))
    else:
        assert metrics["top5"] == 1.0
    for figure, function in (("recall", recall_score), ("precision", precision_score)):
        expected = function(truths, predicted, labels=labels, average=None, zero_division=np.nan)
        found = [row[figure] for row in metrics["per_class"].values()]
        np.testing.assert_allclose(np.array(found, float), expected)


def test_of_equal_logits_the_lower_label_comes_first():
    metrics = evaluated(split_of([0, 4, 5, 6], classes=7), torch.zeros(4, 7)).compute()
    assert metrics["top1"] == 0.25 and metrics["top5"] == 0.5


def test_half_precision_and_gradients_are_no_matter():
    dataset, logits = split_of([1, 0], classes=2), torch.tensor([[0.0, 2.0], [1.0, 3.0]])
    expected = evaluated(dataset, logits).compute()
    assert evaluated(dataset, logits.bfloat16().requires_grad_()).compute() == expected


def test_another_number_of_classes_is_a_bug():
    dataset = split_of([0], classes=2)
    with pytest.raises(ValueError, match="3 logits for 2 classes"):
        ClassificationEvaluator(dataset).update(batch_of(dataset, [0]), torch.zeros(1, 3))


def test_processes_are_joined_and_an_image_counts_once(monkeypatch):
    truths = [0, 1, 2, 1, 0]
    dataset, logits = split_of(truths, classes=3), torch.randn(5, 3)
    whole = evaluated(dataset, logits)
    parts = []
    for ids in ([0, 2, 4], [1, 3, 0]):  # image 0 filled the second one up
        part = ClassificationEvaluator(dataset)
        part.update(batch_of(dataset, ids), logits[ids])
        parts.append(part)
    others = [(part.ids, part.best, part.probabilities) for part in parts]
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)

    def gather(into, mine):
        assert len(into) == 2 and any(mine[0] is other[0] for other in others)
        into[:] = others

    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    for part in parts:
        part.gather()
        assert part.compute() == whole.compute() and list(part.predictions()) == list(whole.predictions())


def printed(metrics) -> list[str]:
    page = io.StringIO()
    print_classification(metrics, Console(file=page, width=80))
    return [" ".join(line.split()) for line in page.getvalue().splitlines()]


def test_tables():
    logits = torch.tensor([[2.0, 1, 0, 0], [0, 3, 0, 0], [0, 3, 0, 0], [0, 1, 0, -1]])
    lines = printed(evaluated(split_of([0, 0, 1, 2], classes=4), logits).compute())
    assert "top1 50.0 the truth is the best label" in lines
    assert "top5 100.0 the truth is among all 4, hence always" in lines
    assert "class images recall precision" in lines and "class 1 1 100.0 33.3" in lines and "class 3 0 – –" in lines


def test_of_many_classes_the_worst_are_printed():
    truths = torch.arange(50)
    logits = torch.nn.functional.one_hot(truths, 60).float()
    logits[7, 8] = 9
    lines = printed(evaluated(split_of(truths.tolist(), classes=60), logits).compute())
    assert "the 40 classes of 60 with the lowest recall" in lines
    rows = lines[lines.index("class images recall precision") + 1 :]
    assert len(rows) == 40 and rows[:2] == ["class 7 1 0.0 –", "class 0 1 100.0 100.0"]


def test_files(tmp_path):
    dataset = split_of([1, 0], classes=2, files=True)
    evaluator = evaluated(dataset, torch.tensor([[0.0, 0.0], [0.0, np.log(3.0)]]))
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
