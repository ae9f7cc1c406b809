import contextlib
import io

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detect.proposals.recall import NEVER, ProposalRecall
from detect.structures import Proposals, Targets


def proposals_of(boxes, valid=None) -> Proposals:
    boxes = torch.as_tensor(boxes, dtype=torch.float32)
    valid = torch.ones(boxes.shape[:2], dtype=torch.bool) if valid is None else torch.as_tensor(valid)
    return Proposals(boxes, torch.zeros(boxes.shape[:2]), valid)


def targets_of(boxes, labels=None, valid=None, crowd=None) -> Targets:
    boxes = torch.as_tensor(boxes, dtype=torch.float32)
    shape = boxes.shape[:2]
    return Targets(
        boxes,
        torch.zeros(shape, dtype=torch.int64) if labels is None else torch.as_tensor(labels),
        torch.ones(shape, dtype=torch.bool) if valid is None else torch.as_tensor(valid),
        torch.zeros(shape, dtype=torch.bool) if crowd is None else torch.as_tensor(crowd),
    )


A, A80, A60 = [0, 0, 10, 10], [0, 0, 10, 8], [0, 0, 10, 6]  # the last two overlap A by 0.8 and 0.6
B = [50, 50, 60, 60]


def test_metrics_are_none_without_ground_truths():
    recall = ProposalRecall(limits=(10,))
    assert recall.compute() == {"AR@10": None, "recall@0.5@10": None, "ABO": None, "MABO": None}
    recall.update(proposals_of([[A]]), targets_of(torch.zeros(1, 0, 4)))
    recall.update(proposals_of([[A]]), targets_of([[A]], valid=[[False]]))
    assert set(recall.compute().values()) == {None}


@pytest.mark.parametrize("proposals", [proposals_of(torch.zeros(1, 0, 4)), proposals_of([[A, A]], [[False, False]])])
def test_metrics_are_zero_without_proposals(proposals):
    recall = ProposalRecall(limits=(10,))
    recall.update(proposals, targets_of([[A, B]]))
    assert set(recall.compute().values()) == {0.0}


def test_by_hand():
    recall = ProposalRecall(limits=(1, 2))
    recall.update(proposals_of([[A80, B]]), targets_of([[A, B]], labels=[[0, 1]]))
    recall.update(proposals_of([[B, A60]]), targets_of([[A, B]], labels=[[0, 0]], valid=[[True, False]]))
    assert recall.compute() == pytest.approx(
        {
            "AR@1": 0.7 / 3,  # 0.50 … 0.80 for one ground truth of three
            "recall@0.5@1": 1 / 3,
            "AR@2": (0.7 + 1 + 0.3) / 3,
            "recall@0.5@2": 1.0,
            "ABO": (0.8 + 1 + 0.6) / 3,
            "MABO": (0.7 + 1) / 2,
        }
    )


def test_a_proposal_matches_only_one_ground_truth():
    recall = ProposalRecall(limits=(1, 2))
    recall.update(proposals_of([[A, B]]), targets_of([[A, A80]]))
    assert recall.ranks[:, 0].tolist() == [0, NEVER]
    assert recall.compute()["recall@0.5@2"] == recall.recall(0.5) == 0.5
    assert recall.compute()["ABO"] == recall.mean_overlap() == pytest.approx(0.9)
    assert recall.covered(0.5) == recall.covered(0.8) == 1.0 and recall.covered(0.85) == 0.5


def test_overlaps_per_limit_and_per_class():
    recall = ProposalRecall(limits=(1, 2))
    recall.update(proposals_of([[A60, B]]), targets_of([[A, B]], labels=[[3, 5]]))
    assert recall.abo(0) == pytest.approx({3: 0.6, 5: 0.0}) and recall.abo() == pytest.approx({3: 0.6, 5: 1.0})
    assert recall.mabo(0) == pytest.approx(0.3) and recall.mabo() == pytest.approx(0.8)
    assert recall.covered(0.5, 0) == 0.5 and recall.covered(0.5) == 1.0 and recall.covered(0.7) == 0.5


def test_crowd_regions_are_ignored():
    recall = ProposalRecall(limits=(5,))
    recall.update(proposals_of([[A]]), targets_of([[A, B]], crowd=[[False, True]]))
    assert recall.compute() == {"AR@5": 1.0, "recall@0.5@5": 1.0, "ABO": 1.0, "MABO": 1.0}


def test_padding_between_proposals_does_not_count_as_a_rank():
    recall = ProposalRecall(limits=(1,))
    recall.update(proposals_of([[B, A, B]], [[False, True, False]]), targets_of([[A, B]]))
    assert recall.compute()["AR@1"] == 0.5


def random_batch(seed, integers=False):
    random = torch.Generator().manual_seed(seed)
    corner, sides = torch.rand(2, 12, 2, generator=random) * 60, 1 + torch.rand(2, 12, 2, generator=random) * 40
    ground_truths = torch.cat([corner, corner + sides], dim=-1)
    of = torch.randint(12, (2, 60), generator=random)
    proposals = ground_truths.gather(1, of[..., None].expand(-1, -1, 4)) + torch.randn(2, 60, 4, generator=random) * 4
    ground_truths, proposals = (boxes.round() if integers else boxes for boxes in (ground_truths, proposals))
    proposals[..., 2:] = torch.maximum(proposals[..., 2:], proposals[..., :2] + 1)
    valid = torch.rand(2, 12, generator=random) < 0.8
    crowd = torch.rand(2, 12, generator=random) < 0.15
    labels = torch.randint(3, (2, 12), generator=random)
    return proposals_of(proposals, torch.rand(2, 60, generator=random) < 0.9), targets_of(
        ground_truths, labels, valid, crowd
    )


def pycocotools_recall(proposals: Proposals, targets: Targets, limits) -> dict[str, float]:
    images = [{"id": i} for i in range(len(proposals.boxes))]
    sides = []
    for structure in (targets, proposals):
        annotations = []
        boxes = structure.boxes.double()
        boxes[..., 2:] -= boxes[..., :2]
        for i, j in structure.valid.nonzero().tolist():
            crowd = structure is targets and bool(targets.crowd[i, j])
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": i,
                    "category_id": 1,
                    "bbox": boxes[i, j].tolist(),
                    "area": boxes[i, j, 2:].prod().item(),
                    "iscrowd": int(crowd),
                    "score": -float(j),
                }
            )
        side = COCO()
        side.dataset = {"images": images, "categories": [{"id": 1}], "annotations": annotations}
        side.createIndex()
        sides.append(side)
    evaluation = COCOeval(*sides, "bbox")
    evaluation.params.useCats = 0
    evaluation.params.maxDets = list(limits)
    evaluation.evaluate()
    evaluation.accumulate()
    recall = evaluation.eval["recall"][:, 0, 0]  # [IoUs, limits], all areas
    averages = {f"AR@{limit}": recall[:, m].mean() for m, limit in enumerate(limits)}
    return averages | {f"recall@0.5@{limit}": recall[0, m] for m, limit in enumerate(limits)}


@pytest.mark.parametrize("seed", range(20))
def test_average_recall_equals_pycocotools(seed):
    limits = (1, 5, 20, 100)
    batch = random_batch(seed, integers=seed % 2 == 0)
    recall = ProposalRecall(limits)
    recall.update(*batch)
    with contextlib.redirect_stdout(io.StringIO()):
        expected = pycocotools_recall(*batch, limits)
    ours = recall.compute()
    assert {name: ours[name] for name in expected} == pytest.approx(expected, abs=1e-12)


def test_merging_processes():
    together, one, other = (ProposalRecall(limits=(3, 30)) for _ in range(3))
    for seed, part in ((0, one), (1, other)):
        part.update(*random_batch(seed))
        together.update(*random_batch(seed))
    other.merge(one)
    assert other.compute() == pytest.approx(together.compute(), abs=1e-12)
    np.testing.assert_array_equal(np.sort(other.overlaps, axis=0), np.sort(together.overlaps, axis=0))
    with pytest.raises(ValueError, match="limits"):
        one.merge(ProposalRecall(limits=(3,)))
