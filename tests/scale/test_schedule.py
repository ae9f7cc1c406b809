import json
import random
from collections import Counter
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detect.errors import UserError
from detect.prediction.predict import predict
from detect.prediction.result import Result
from detect.scale.schedule import Piece, predict_parts
from detect.scale.worker import Job, Worker

FILES = ["images.json", "predictions.csv", "predictions.json"]


class Red:
    """Detector of one object, whose score is the red of the image."""

    classes, category_ids, predicts_masks = ("cat",), (7,), False

    def check_options(self, **options):
        pass

    def predict(self, source, **options):
        for frame in source:
            height, width = frame.pixels.shape[:2]
            yield Result(
                boxes=np.array([[1, 2, width, height]], np.float32),
                scores=np.array([frame.pixels[0, 0, 0] / 256], np.float32),
                labels=np.array([0]),
                classes=self.classes,
                category_ids=self.category_ids,
                size=(height, width),
                path=frame.path,
                index=frame.index,
            )


class FakeWorkers:
    """Two workers in this process, whose pieces are complete, or die, in the order in which they were started.

    Args:
        run: the run.
        dies: called with a piece and the names of its images; returns whether the worker dies.
    """

    count = 2

    def __init__(self, run, dies):
        listing, folder = run.listing, run.folder
        parts = listing.parts(folder.part_size)
        self.offsets = folder.write_listing(listing.part(names, folder.draws) for names in parts)
        self.dies, self.parts, self.pieces, self.started = dies, parts, [], []
        self.worker = Worker(Job(run.checkpoint, run.options, folder, run.download, 1, 1, "."))
        self.worker._model = Red()

    @property
    def idle(self):
        return len(self.pieces) < self.count

    @property
    def busy(self):
        return bool(self.pieces)

    def start(self, piece):
        assert self.idle
        self.pieces.append(piece)
        self.started.append(piece)

    def wait(self):
        piece = self.pieces.pop(0)
        names = [Path(name).name for name in self.parts[piece.part][piece.start : piece.stop]]
        if self.dies(piece, names):
            return [(piece, None)]
        return [(piece, self.worker.predict(piece, self.offsets[piece.part]))]


@pytest.fixture
def photos(tmp_path) -> Path:
    """Twenty images, and a file among them that is not an image."""
    (tmp_path / "photos").mkdir()
    for i in range(20):
        Image.new("RGB", (12, 8), (10 * i, 0, 0)).save(tmp_path / "photos" / f"{i:02}.png")
    (tmp_path / "photos" / "03.broken.png").write_bytes(b"none")
    (tmp_path / "best.ckpt").write_bytes(b"weights")
    return tmp_path / "photos"


def run(photos, out, dies=None, **options):
    """Predict in parts of eight images, in this process or with `FakeWorkers`; return the outcome and the pieces."""
    started = []

    def engine(run, parts):
        workers = FakeWorkers(run, dies)
        started.append(workers.started)
        predict_parts(run, parts, workers)

    options.setdefault("options", {"batch_size": 8})
    checkpoint = photos.parent / "best.ckpt"
    outcome = predict(Red(), [photos], out, checkpoint=checkpoint, engine=dies and engine, **options)
    return outcome, [(piece.part, piece.start, piece.stop) for piece in chain(*started)]


def contents(out) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def without(photos, names, out) -> dict[str, bytes]:
    """Return the result files of a run in which some images cannot be read."""
    kept = {name: (photos / name).read_bytes() for name in names}
    for name in names:
        (photos / name).write_bytes(b"none")
    run(photos, out)
    for name, content in kept.items():
        (photos / name).write_bytes(content)
    return {name: (out / name).read_bytes() for name in FILES}


def test_without_deaths_the_files_are_those_of_a_plain_run(tmp_path, photos):
    plain, _ = run(photos, tmp_path / "plain")
    outcome, started = run(photos, tmp_path / "out", lambda piece, names: False)
    assert started == [(0, 0, 8), (1, 0, 8), (2, 0, 5)]
    assert outcome == plain and contents(tmp_path / "out") == contents(tmp_path / "plain")
    assert any(name.startswith("pictures") for name in contents(tmp_path / "out"))


def test_a_part_whose_worker_dies_is_repeated(tmp_path, photos):
    plain, _ = run(photos, tmp_path / "plain")
    deaths = Counter()

    def twice(piece, names):
        deaths[piece] += 1
        return deaths[piece] <= 2

    outcome, started = run(photos, tmp_path / "out", twice)
    assert Counter(started) == {(0, 0, 8): 3, (1, 0, 8): 3, (2, 0, 5): 3}
    assert outcome == plain and contents(tmp_path / "out") == contents(tmp_path / "plain")


def test_an_image_that_kills_is_found_by_halving_and_left_out(tmp_path, photos, caplog):
    outcome, started = run(photos, tmp_path / "out", lambda piece, names: "10.png" in names)
    pieces = Counter(piece for piece in started if piece[0] == 1)
    halves = [(1, 0, 4), (1, 0, 2), (1, 2, 4), (1, 2, 3), (1, 4, 8)]
    assert pieces == dict.fromkeys(halves, 1) | {(1, 0, 8): 3, (1, 3, 4): 3}
    line = f"{photos / '10.png'}: 3 workers died on it, perhaps for lack of memory"
    assert len(outcome.left_out) == 2 and outcome.left_out[1] == line
    logged = [record.getMessage() for record in caplog.records]
    assert logged[0] == f"a worker died while it predicted on {photos / '07.png'} and the next 7"
    assert logged[-1] == f"a worker died while it predicted on {photos / '10.png'}" and len(logged) == 8
    expected = without(photos, ["10.png"], tmp_path / "plain")
    assert {name: (tmp_path / "out" / name).read_bytes() for name in FILES} == expected
    assert (tmp_path / "out" / "pictures" / "09.png.jpg").exists()
    assert not (tmp_path / "out" / "parts").exists() and not (tmp_path / "out" / "listing.jsonl").exists()
    assert run(photos, tmp_path / "out")[0].left_out == outcome.left_out


@pytest.mark.parametrize("seed", range(8))
def test_any_images_that_kill(tmp_path, photos, seed):
    """Workers also die for other reasons, but never three times on one image."""
    draw, deaths = random.Random(seed), Counter()
    killers = draw.sample([f"{i:02}.png" for i in range(20)], draw.randrange(6))

    def dies(piece, names):
        by_chance = draw.random() < 0.3 and deaths[piece] < 2
        deaths[piece] += by_chance
        return by_chance or not set(killers).isdisjoint(names)

    outcome, _ = run(photos, tmp_path / "out", dies)
    assert [line.split(": ")[0] for line in outcome.left_out] == sorted(
        map(str, [photos / "03.broken.png", *(photos / name for name in killers)]), key=lambda name: order(name, photos)
    )
    assert {name: (tmp_path / "out" / name).read_bytes() for name in FILES} == without(
        photos, killers, tmp_path / "plain"
    )


def order(name, photos) -> int:
    return sorted(photos.iterdir()).index(Path(name))


def test_images_that_kill_only_together_are_kept(tmp_path, photos):
    run(photos, tmp_path / "plain")
    outcome, _ = run(photos, tmp_path / "out", lambda piece, names: len(names) > 2)
    assert len(outcome.left_out) == 1 and contents(tmp_path / "out") == contents(tmp_path / "plain")


def test_a_part_of_one_image_that_kills(tmp_path, photos):
    dies = lambda piece, names: names == ["05.png"]  # noqa: E731
    outcome, started = run(photos, tmp_path / "out", dies, options={"batch_size": 1})
    assert Counter(started)[6, 0, 1] == 3 and len(started) == 23
    assert [line.split(": ")[0][-6:] for line in outcome.left_out] == ["en.png", "05.png"]


def test_a_run_in_which_all_workers_die_ends(tmp_path, photos):
    with pytest.raises(UserError, match=r"40 workers died, and none completed a part, .*; try fewer --actors") as error:
        run(photos, tmp_path / "out", lambda piece, names: True)
    assert "\n" not in str(error.value)
    plain, _ = run(photos, tmp_path / "plain")
    assert run(photos, tmp_path / "out")[0] == plain
    assert contents(tmp_path / "out") == contents(tmp_path / "plain")


def test_an_interrupted_run_keeps_its_complete_parts(tmp_path, photos):
    def interrupt(piece, names):
        if piece.part == 2:
            raise KeyboardInterrupt
        return piece.part == 1 and "10.png" in names

    with pytest.raises(KeyboardInterrupt):
        run(photos, tmp_path / "out", interrupt)
    kept = [path.name for path in (tmp_path / "out" / "parts").glob("*.jsonl")]
    assert kept == ["000000.jsonl"]
    _, started = run(photos, tmp_path / "out", lambda piece, names: False)
    assert started == [(1, 0, 8), (2, 0, 5)]
    run(photos, tmp_path / "plain")
    assert contents(tmp_path / "out") == contents(tmp_path / "plain")


def test_a_mistake_of_the_user_ends_the_run(tmp_path, photos):
    def mistake(piece, names):
        raise UserError("cats.ckpt: damaged")

    with pytest.raises(UserError, match="damaged"):
        run(photos, tmp_path / "out", mistake)


def test_halves():
    first, second = Piece(4, 0, 5, True).halves()
    assert (first, second) == (Piece(4, 0, 2, False), Piece(4, 2, 5, False))


def test_the_listing_has_every_name_once(tmp_path, photos):
    def read(run, parts):
        workers = FakeWorkers(run, None)
        listed = [run.folder.read_listing(offset) for offset in workers.offsets]
        assert [part.names for part in listed] == list(parts.values())
        lines = (tmp_path / "out" / "listing.jsonl").read_text().splitlines()
        assert [json.loads(line)["names"] for line in lines] == list(parts.values())
        assert all(len(part.drawings) == len(part.names) for part in listed)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict(Red(), [photos], tmp_path / "out", checkpoint=tmp_path / "best.ckpt", engine=read)
