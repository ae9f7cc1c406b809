"""Batches of the images that wait."""

import sys
import time
from pathlib import Path
from threading import Barrier, Event

import numpy as np
import pytest

from detect.prediction.sources import Frame
from detect.serve.batcher import Batcher

sys.path.insert(0, str(Path(__file__).parent))
from fake_detector import FakeDetector


def frame(red: int = 100, width: int = 40) -> Frame:
    return Frame(np.full((30, width, 3), red, np.uint8))


class HeldDetector(FakeDetector):
    """Runs its first batch only once it is released, so that others wait."""

    def __init__(self) -> None:
        super().__init__()
        self.started, self.released = Event(), Event()

    def predict(self, source, **options):
        self.started.set()
        assert self.released.wait(20)
        yield from super().predict(source, **options)


@pytest.fixture
def held():
    """Return a detector that is busy with one image, and its batcher."""
    detector = HeldDetector()
    batcher = Batcher(detector, {}, max_batch=4, max_wait=0)
    batcher.submit(frame(), 0.5)
    assert detector.started.wait(20)
    yield detector, batcher
    detector.released.set()
    batcher.close()


def test_each_image_gets_its_own_result(held):
    detector, batcher = held
    futures = [batcher.submit(frame(red), 0.3) for red in range(10, 17)]
    detector.released.set()
    assert [future.result(20).boxes[1, 0] * 256 for future in futures] == list(range(10, 17))
    assert detector.batches == [1, 4, 3]


def test_only_images_of_one_canvas_and_threshold_share_a_batch(held):
    detector, batcher = held
    sizes = [(40, 0.5), (200, 0.5), (40, 0.3), (40, 0.5)]
    futures = [batcher.submit(frame(width=width), score) for width, score in sizes]
    detector.released.set()
    assert [(future.result(20).size[1], len(future.result())) for future in futures] == [
        (40, 1),
        (200, 1),
        (40, 2),
        (40, 1),
    ]
    assert detector.batches == [1, 2, 1, 1]  # the first and the last; the one that waited longest comes first


def test_an_image_that_fails_does_not_affect_its_batch(held):
    detector, batcher = held
    futures = [batcher.submit(frame(red), 0.5) for red in (50, 0, 60)]
    detector.released.set()
    assert [len(futures[index].result(20)) for index in (0, 2)] == [1, 1]
    with pytest.raises(ValueError, match="a black image"):
        futures[1].result(20)
    assert batcher.alive and len(batcher.submit(frame(), 0.5).result(20)) == 1


def test_a_cancelled_image_is_not_processed(held):
    detector, batcher = held
    futures = [batcher.submit(frame(), 0.5) for _ in range(3)]
    assert futures[1].cancel()
    detector.released.set()
    assert len(futures[2].result(20)) == 1
    assert detector.batches == [1, 2]


def test_closing_answers_what_waits_and_takes_no_more(held):
    detector, batcher = held
    futures = [batcher.submit(frame(), 0.5) for _ in range(6)]
    detector.released.set()
    batcher.close()
    assert all(future.done() and len(future.result()) == 1 for future in futures)
    assert not batcher.alive
    with pytest.raises(RuntimeError, match="closed"):
        batcher.submit(frame(), 0.5)


def test_an_image_waits_for_others_until_the_batch_is_full():
    detector = FakeDetector()
    batcher = Batcher(detector, {}, max_batch=3, max_wait=20)
    futures = [batcher.submit(frame(), 0.5) for _ in range(3)]
    assert [len(future.result(10)) for future in futures] == [1, 1, 1]
    assert detector.batches == [3]
    batcher.close()


def test_an_image_alone_waits_no_longer_than_allowed():
    detector = FakeDetector()
    batcher = Batcher(detector, {}, max_batch=8, max_wait=0.01)
    assert len(batcher.submit(frame(), 0.5).result(10)) == 1
    batcher.close()


def test_batches_run_at_the_same_time_and_share_the_cores():
    both = Barrier(2, timeout=20)
    threads = []

    class Meeting(FakeDetector):
        def predict(self, source, **options):
            both.wait()  # passes only if two batches run at the same time
            yield from super().predict(source, **options)

    batcher = Batcher(Meeting(), {}, max_batch=1, max_wait=0, cores=4, set_threads=threads.append)
    for _ in range(3):
        futures = [batcher.submit(frame(), 0.5) for _ in range(2)]
        assert [len(future.result(20)) for future in futures] == [1, 1]
    batcher.close()
    assert len(threads) == 6 and set(threads) <= {2, 4}


def test_an_image_alone_gets_all_cores():
    threads = []
    batcher = Batcher(FakeDetector(), {}, max_batch=1, max_wait=0, cores=4, set_threads=threads.append)
    for _ in range(3):
        batcher.submit(frame(), 0.5).result(10)
        while batcher._running:  # until its thread has counted it out
            time.sleep(0.001)
    batcher.close()
    assert threads == [4, 4, 4]
