from collections import Counter
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest

from detect.data.canvases import CanvasBatchSampler, assign_canvases, plan_canvases
from detect.data.transforms import Resize

RESIZES = [Resize(64, 120), Resize(96, 150)]


def random_sizes(count: int, seed: int = 0) -> list[tuple[int, int]]:
    sizes = np.random.default_rng(seed).integers(40, 400, (count, 2))
    return [(int(height), int(width)) for height, width in sizes]


def sampler(count: int, **options) -> CanvasBatchSampler:
    return CanvasBatchSampler(
        random_sizes(count), **({"batch_size": 3, "resizes": RESIZES, "max_canvases": 3} | options)
    )


def test_canvases_by_hand():
    sizes = np.array([[64, 100], [60, 97], [64, 128], [128, 64], [33, 1]])
    # Rounded up: 64×128 three times, 128×64, 64×32. For two canvases, merging the last two adds the least padding.
    assert plan_canvases(sizes, max_canvases=2) == [(64, 128), (128, 64)]
    assert plan_canvases(sizes, max_canvases=9) == [(64, 32), (64, 128), (128, 64)]
    assert plan_canvases(sizes, max_canvases=1) == [(128, 128)]


def test_one_image_has_one_canvas_and_no_image_has_none():
    assert plan_canvases(np.array([[1, 33]]), max_canvases=4) == [(32, 64)]
    assert plan_canvases(np.zeros((0, 2), int), max_canvases=4) == []


@pytest.mark.parametrize("most", [1, 2, 5])
def test_every_image_gets_the_smallest_of_few_canvases_that_hold_it(most):
    sizes = np.array(random_sizes(200))
    canvases = plan_canvases(sizes, most)
    assert len(canvases) <= most and all(side % 32 == 0 for canvas in canvases for side in canvas)
    for size, place in zip(sizes, assign_canvases(sizes, canvases), strict=True):
        holding = [np.prod(canvas) for canvas in canvases if (size <= canvas).all()]
        assert (size <= canvases[place]).all() and np.prod(canvases[place]) == min(holding)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("most", [1, 3])
def test_batches_share_a_scale_and_one_of_few_canvases(training, most):
    sizes = random_sizes(40)
    batches = list(sampler(40, training=training, max_canvases=most))
    seen = {}
    for batch in batches:
        assert len({(item.canvas, item.resize) for item in batch}) == 1
        for item in batch:
            assert all(np.array(item.resize.size(*sizes[item.index])) <= item.canvas)
            assert item.canvas[0] % 32 == item.canvas[1] % 32 == 0
            seen.setdefault(item.resize, set()).add(item.canvas)
    assert all(len(canvases) <= most for canvases in seen.values())
    assert len(seen) == (2 if training else 1)


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 2, 7, 20])
def test_training_sees_every_image_and_every_batch_is_full(count, world_size):
    ranks = [sampler(count, training=True, rank=rank, world_size=world_size) for rank in range(world_size)]
    batches = [list(rank) for rank in ranks]
    assert {len(one) for one in batches} == {len(rank) for rank in ranks} == {len(ranks[0])}
    assert all(len(batch) == 3 for batch in chain(*batches))
    assert {item.index for batch in chain(*batches) for item in batch} == set(range(count))


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 2, 7, 20])
def test_evaluation_sees_every_image_once(count, world_size):
    ranks = [sampler(count, training=False, rank=rank, world_size=world_size) for rank in range(world_size)]
    batches = [list(rank) for rank in ranks]
    assert [len(one) for one in batches] == [len(rank) for rank in ranks]
    images = Counter(item.index for batch in chain(*batches) for item in batch)
    assert images == Counter(range(count))
    assert {item.resize for batch in chain(*batches) for item in batch} == {RESIZES[0]}


def test_no_seed_comes_twice_in_two_epochs():
    one = sampler(20, training=True)
    seeds = [item.seed for batch in one for item in batch]
    one.set_epoch(1)
    seeds += [item.seed for batch in one for item in batch]
    assert len(set(seeds)) == len(seeds)


def test_the_seed_and_the_epoch_alone_decide():
    one, other = sampler(20, training=True, seed=5), sampler(20, training=True, seed=5)
    first = list(one)
    assert first == list(one) == list(other)
    one.set_epoch(1)
    assert first != list(one)
    assert first != list(sampler(20, training=True, seed=6))
    one.set_epoch(0)
    assert first == list(one)


@pytest.mark.parametrize("world_size", [1, 2])
def test_items_of_closing_epochs_say_so_and_are_the_same_otherwise(world_size):
    for rank in range(world_size):
        one, other = (
            sampler(20, training=True, rank=rank, world_size=world_size, closing_from=first) for first in (None, 2)
        )
        for epoch in range(4):
            one.set_epoch(epoch)
            other.set_epoch(epoch)
            expected = [[replace(item, closing=epoch >= 2) for item in batch] for batch in one]
            assert list(other) == expected and not any(item.closing for batch in one for item in batch)


@pytest.mark.parametrize("world_size", [1, 2])
def test_an_epoch_goes_on_with_the_batch_that_comes_next(world_size):
    for rank in range(world_size):
        one, other = (sampler(20, training=True, rank=rank, world_size=world_size) for _ in range(2))
        one.set_epoch(3)
        whole = list(one)
        for done in range(len(whole) + 1):
            other.resume_at(3, done)
            other.set_epoch(3)  # as Lightning does after the start of the workers
            assert list(other) == whole[done:] and len(other) == len(whole)
        other.set_epoch(4)
        one.set_epoch(4)
        assert list(other) == list(one)
