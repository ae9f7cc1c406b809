import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, precision_score, recall_score, top_k_accuracy_score

from detect.data.formats.imagefolder import ImageClasses
from detect.evaluation.classification import ClassificationEvaluator
from detect.structures import ClassificationBatch


def split_of(labels: list[int], classes: int) -> ImageClasses:
    names = tuple(f"class {label}" for label in range(classes))
    images = np.zeros((len(labels), 1, 1, 3), np.uint8)
    return ImageClasses("data", "val", names, images, np.array(labels, np.int64))


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


def test_without_images():
    evaluator = ClassificationEvaluator(split_of([0, 1], classes=2))
    evaluator.gather()
    metrics = evaluator.compute()
    assert metrics["top1"] is None and metrics["top5"] is None and metrics["confusion"] == [[0, 0], [0, 0]]
    assert list(evaluator.predictions()) == []


@pytest.mark.parametrize("classes", [3, 5, 6, 30])
def test_metrics_equal_scikit_learn(classes):
    ground_truths = torch.cat([torch.arange(classes), torch.randint(classes, (90,))])
    logits = torch.randn(len(ground_truths), classes) + torch.nn.functional.one_hot(ground_truths, classes)
    metrics = evaluated(split_of(ground_truths.tolist(), classes), logits).compute()
    predicted, labels = logits.argmax(dim=1), range(classes)
    np.testing.assert_array_equal(metrics["confusion"], confusion_matrix(ground_truths, predicted, labels=labels))
    assert metrics["top1"] == pytest.approx(top_k_accuracy_score(ground_truths, logits, k=1, labels=labels))
    if classes > 5:
        assert metrics["top5"] == pytest.approx(top_k_accuracy_score(ground_truths, logits, k=5, labels=labels))
    else:
        assert metrics["top5"] == 1.0
    for metric, function in (("recall", recall_score), ("precision", precision_score)):
        expected = function(ground_truths, predicted, labels=labels, average=None, zero_division=np.nan)
        values = [row[metric] for row in metrics["per_class"].values()]
        np.testing.assert_allclose(np.array(values, float), expected)


def test_of_equal_logits_the_lower_label_comes_first():
    metrics = evaluated(split_of([0, 4, 5, 6], classes=7), torch.zeros(4, 7)).compute()
    assert metrics["top1"] == 0.25 and metrics["top5"] == 0.5


def test_half_precision_and_gradients_do_not_matter():
    dataset, logits = split_of([1, 0], classes=2), torch.tensor([[0.0, 2.0], [1.0, 3.0]])
    expected = evaluated(dataset, logits).compute()
    assert evaluated(dataset, logits.bfloat16().requires_grad_()).compute() == expected


def test_a_wrong_number_of_logits_is_an_error():
    dataset = split_of([0], classes=2)
    with pytest.raises(ValueError, match="3 logits for 2 classes"):
        ClassificationEvaluator(dataset).update(batch_of(dataset, [0]), torch.zeros(1, 3))


def test_shards_are_gathered_and_an_image_counts_once(monkeypatch):
    dataset, logits = split_of([0, 1, 2, 1, 0], classes=3), torch.randn(5, 3)
    whole = evaluated(dataset, logits)
    shards = []
    for ids in ([0, 2, 4], [1, 3, 0]):  # image 0 pads the second shard
        shard = ClassificationEvaluator(dataset)
        shard.update(batch_of(dataset, ids), logits[ids])
        shards.append(shard)
    others = [(shard.ids, shard.best, shard.probabilities) for shard in shards]
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)

    def gather(into, mine):
        assert len(into) == 2 and any(mine[0] is other[0] for other in others)
        into[:] = others

    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    for shard in shards:
        shard.gather()
        assert shard.compute() == whole.compute() and list(shard.predictions()) == list(whole.predictions())
