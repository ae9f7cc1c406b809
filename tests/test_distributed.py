"""Distributed evaluation and sampling: several processes share the images and give the result of one.

With a network, killed processes and several hosts: tests/endurance/distributed.py.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from itertools import chain

import numpy as np
import pytest

from detect.data.canvases import CanvasBatchSampler
from detect.data.transforms import Resize

WORKER = """
import json, sys
from datetime import timedelta
from pathlib import Path
import numpy as np, torch
from torch import distributed
from detect.data.dataset import Dataset
from detect.data.records import Record
from detect.evaluation.evaluator import Evaluator
from detect.structures import Batch, Detections, Images, Proposals, Targets

rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
def tensors(image):
    rng = np.random.default_rng(image)
    corners = rng.integers(0, 40, (4, 2))
    boxes = torch.from_numpy(np.concatenate([corners, corners + rng.integers(8, 50, (4, 2))], axis=1)).float()
    detected = boxes.repeat(3, 1) + torch.from_numpy(rng.integers(-4, 5, (12, 4))).float()
    scores = torch.from_numpy(rng.integers(1, 5, 12) / 5).float()  # with many ties
    return boxes, torch.arange(4) % 2, detected, scores, torch.from_numpy(rng.integers(0, 2, 12))

def metrics(count, rank, world):
    records = []
    for image in range(count):
        boxes, labels, *_ = tensors(image)
        none = np.zeros(4, bool)
        area = (boxes[:, 2:] - boxes[:, :2]).prod(-1).double().numpy()
        records.append(Record(image, Path(f"{image}.jpg"), 99, 99, boxes.numpy(), labels.numpy(), none, none, area))
    evaluator = Evaluator(Dataset(Path(), "val", "coco", ("a", "b"), (1, 2), tuple(records)))
    for image in range(rank, count, world):
        boxes, labels, detected, scores, classes = (tensor[None] for tensor in tensors(image))
        four, twelve = torch.ones(1, 4, dtype=torch.bool), torch.ones(1, 12, dtype=torch.bool)
        batch = Batch(
            Images(torch.zeros(1, 3, 1, 1), torch.ones(1, 2, dtype=torch.long)), Targets(boxes, labels, four, ~four),
            torch.tensor([image]), torch.ones(1, 2),
        )
        loss = {"classification": scores.mean()}
        proposals = Proposals(detected, scores, twelve)
        evaluator.update(batch, Detections(detected, scores, classes, twelve, proposals), loss)
    evaluator.gather()
    return evaluator.compute(), [one.image_id for one in evaluator.predictions]

alone = [metrics(count, 0, 1) for count in range(1, 10)]
store = f"file://{folder / 'store'}"
distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=world, timeout=timedelta(seconds=60))
together = [metrics(count, rank, world) for count in range(1, 10)]
(folder / f"{rank}.json").write_text(json.dumps([alone, together]))
distributed.destroy_process_group()
"""


def test_two_processes_have_the_metrics_of_one(tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(rank), "2", str(tmp_path)], stderr=subprocess.PIPE, text=True,
            env=environment,
        )
        for rank in range(2)
    ]  # fmt: skip
    for process in running:
        _, error = process.communicate(timeout=120)
        assert process.returncode == 0, error
    for rank in range(2):
        alone, together = json.loads((tmp_path / f"{rank}.json").read_text())
        for count, ((one, images), (other, images_of_all)) in enumerate(zip(alone, together, strict=True), start=1):
            assert images == images_of_all == list(range(count))
            losses, losses_of_all = one.pop("losses"), other.pop("losses")  # float sums in another order
            assert losses_of_all == pytest.approx(losses, rel=1e-12)
            assert one == other and 0 < one["AP"] < 1


def sampler(count: int, **options) -> CanvasBatchSampler:
    sizes = [(int(h), int(w)) for h, w in np.random.default_rng(0).integers(40, 200, (count, 2))]
    resizes = [Resize(64, 120), Resize(96, 150)]
    return CanvasBatchSampler(sizes, **({"resizes": resizes, "max_canvases": 3, "training": True} | options))


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("count", range(1, 10))
def test_each_image_is_evaluated_once(count, world):
    ranks = [sampler(count, training=False, batch_size=1, rank=rank, world_size=world) for rank in range(world)]
    assert Counter(item.index for batch in chain(*ranks) for item in batch) == Counter(range(count))


@pytest.mark.parametrize(("world", "batch_size"), [(2, 3), (3, 2), (6, 1)])
def test_processes_share_the_batches_of_one_process(world, batch_size):
    """Also if one process resumes at the batch where several stopped: the fourth of the second epoch."""
    alone = sampler(40, batch_size=6)
    ranks = [sampler(40, batch_size=batch_size, rank=rank, world_size=world) for rank in range(world)]
    for begin in (False, True):
        if begin:
            for one in (alone, *ranks):
                one.resume_at(1, 3)
        together = [list(chain(*parts)) for parts in zip(*ranks, strict=True)]
        assert together == list(alone) and len(together) == len(alone) - 3 * begin == len(ranks[0]) - 3 * begin
        assert all(len({item.canvas for item in batch}) == 1 for batch in together)
