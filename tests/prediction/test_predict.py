import csv
import errno
import json
import os
import signal
import subprocess
import sys
import threading
import weakref
from itertools import chain
from pathlib import Path
from unittest.mock import Mock

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from detect.data.decode import decode
from detect.errors import UserError
from detect.prediction import parts as module_parts
from detect.prediction import predict as module
from detect.prediction import sources
from detect.prediction import video as film_module
from detect.prediction.listing import listing
from detect.prediction.parts import Parts, whole
from detect.prediction.predict import Outcome, predict, shard_of
from detect.prediction.result import Result
from detect.prediction.sources import frames, video_info

FILES = ["images.json", "predictions.csv", "predictions.json"]


class Fake:
    """Finds one object, whose score and class follow from the red of the image, and none where that is 0."""

    classes, category_ids = ("cat", "dög"), (7, 3)

    def __init__(self, fail_after=None):
        self.fail_after, self.seen, self.options, self.alive, self.most = fail_after, [], [], [], 0

    def predict(self, source, **options):
        self.options.append(options)
        for frame in source:
            if len(self.seen) == self.fail_after:
                raise RuntimeError("killed")
            self.seen.append(frame.path)
            self.alive = [one for one in (*self.alive, weakref.ref(frame.pixels)) if one() is not None]
            self.most = max(self.most, len(self.alive))
            yield self.result(frame)

    def result(self, frame):
        red, (height, width) = int(frame.pixels[0, 0, 0]), frame.pixels.shape[:2]
        n = int(red > 0)
        return Result(
            boxes=np.array([[0.1, 1, width - 0.3, height]] * n, np.float32).reshape(-1, 4),
            scores=np.array([red / 256] * n, np.float32),
            labels=np.array([red % 2] * n, np.int64),
            classes=self.classes,
            category_ids=self.category_ids,
            size=(height, width),
            path=frame.path,
            index=frame.index,
            pixels=None if frame.again else frame.pixels,
        )


def write_image(path, red, size=(48, 32)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (red, 90, 160)).save(path)
    return path


def write_video(path, count=5, fps=12.5, size=(48, 32)) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), fps, size)
    for i in range(count):
        writer.write(np.full((size[1], size[0], 3), (20, 20, 40 * i), np.uint8))  # BGR
    writer.release()
    return path


@pytest.fixture
def photos(tmp_path) -> Path:
    """Seven images of red 10, 20, … 70 in the order of their names, and one among them that is none."""
    for i in range(7):
        write_image(tmp_path / "photos" / f"{i}.png", 10 * (i + 1))
    (tmp_path / "photos" / "3.broken.jpg").write_bytes(b"none")
    return tmp_path / "photos"


@pytest.fixture
def run(tmp_path):
    """`predict` with the checkpoint and, unless they are given, the model and the folder `out`."""
    (tmp_path / "best.ckpt").write_bytes(b"weights")

    def run(*given, model=None, out=tmp_path / "out", **options):
        return predict(model or Fake(), list(given), out, checkpoint=tmp_path / "best.ckpt", **options)

    return run


def tree(folder) -> list[str]:
    """Its files, hidden ones too, relative to it."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def contents(folder) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


def rows(out) -> list[list[str]]:
    with (out / "predictions.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def test_torch_is_not_needed():
    code = "import sys, detect.prediction.predict; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout.split() == [b"False"]


# What is written


def test_every_file_by_hand(tmp_path, run):
    empty, one = write_image(tmp_path / "a" / "empty.png", 0), write_image(tmp_path / "a" / "one.png", 64)
    two = write_image(tmp_path / "a" / "two.png", 129, (20, 10))
    outcome = run(one, two, empty)
    out = tmp_path / "out"
    assert outcome == Outcome(predicted=3, merged=True, images=3, detections=2, left_out=[])
    assert tree(out) == sorted(
        [*FILES, "manifest.json", *(f"pictures/{name}.png.jpg" for name in ("empty", "one", "two"))]
    )
    low, high = float(np.float32(0.1)), float(np.float32(47.7))
    assert json.loads((out / "predictions.json").read_text())[0] == {
        "image_id": 1,
        "category_id": 7,
        "bbox": [low, 1.0, high - low, 31.0],
        "score": 0.25,
    }
    assert json.loads((out / "images.json").read_text()) == {
        "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "dög"}],
        "annotations": [],
        "images": [
            {"id": 1, "file_name": str(one), "width": 48, "height": 32},
            {"id": 2, "file_name": str(two), "width": 20, "height": 10},
            {"id": 3, "file_name": str(empty), "width": 48, "height": 32},
        ],
    }
    assert rows(out) == [
        ["path", "index", "x1", "y1", "x2", "y2", "score", "label", "name"],
        [str(one), "", "0.1", "1.0", "47.7", "32.0", "0.25", "0", "cat"],
        [str(two), "", "0.1", "1.0", "19.7", "10.0", "0.50390625", "1", "dög"],
    ]
    with Image.open(out / "pictures" / "one.png.jpg") as picture:
        assert picture.format == "JPEG" and picture.size == (48, 32)
    drawn = next(frames(one))
    expected = Fake().result(drawn).plot()
    assert np.abs(decode(out / "pictures" / "one.png.jpg").astype(int) - expected).mean() < 4


def test_images_and_predictions_are_a_coco_data_set_with_its_results(tmp_path, photos, run, capsys):
    run(photos)
    truth = COCO(str(tmp_path / "out" / "images.json"))
    results = truth.loadRes(str(tmp_path / "out" / "predictions.json"))
    assert sorted(results.getImgIds()) == [1, 2, 3, 4, 5, 6, 7]
    assert [one["category_id"] for one in results.loadAnns(results.getAnnIds())] == [7] * 7
    assert truth.loadCats(3)[0]["name"] == "dög"


def test_nothing_found_is_an_empty_list(tmp_path, run):
    run(write_image(tmp_path / "a.png", 0))
    assert json.loads((tmp_path / "out" / "predictions.json").read_text()) == []
    assert len(rows(tmp_path / "out")) == 1
    assert COCO(str(tmp_path / "out" / "images.json")).getImgIds() == [1]


@pytest.mark.parametrize("save", [["csv"], ["coco"], ["pictures"], ["csv", "pictures"]])
def test_only_what_is_to_be_saved_is(tmp_path, run, save):
    run(write_image(tmp_path / "x" / "a.jpg", 9), save=save)
    of = {"csv": ["predictions.csv"], "coco": ["predictions.json", "images.json"], "pictures": ["pictures/a.jpg"]}
    assert tree(tmp_path / "out") == sorted(["manifest.json", *(name for kind in save for name in of[kind])])


def test_many_images_have_pictures_only_on_demand(tmp_path, photos, run, monkeypatch):
    monkeypatch.setattr(module, "PICTURES", 8)
    run(photos, out=tmp_path / "few")
    monkeypatch.setattr(module, "PICTURES", 7)
    run(photos, out=tmp_path / "many")
    run(photos, out=tmp_path / "asked", save=["pictures"])
    assert [(tmp_path / name / "pictures").exists() for name in ("few", "many", "asked")] == [True, False, True]
    assert contents(tmp_path / "few") == contents(tmp_path / "many")


def test_files_of_one_name_have_pictures_of_their_own(tmp_path, run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["a/x.png", "b/x.png", "b/x.jpg", "b/x.png.jpg", "b/x.png.jpg.jpg", "b/c/x.JPG", "é x.jpeg"]
    for number, name in enumerate(names):
        write_image(Path(name), 10 * number)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link").symlink_to(tmp_path / "b")
    monkeypatch.chdir(tmp_path / "in")
    given = ["../a", "../b/x.png", tmp_path / "b", "link", "../in/../é x.jpeg", "../a/x.png"]
    assert run(*given).predicted == len(names)
    assert tree(tmp_path / "out" / "pictures") == sorted(
        [
            "a/x.png.jpg",
            "b/x.png.jpg.jpg.jpg",
            "b/x.jpg",
            "b/x.png.jpg",
            "b/x.png.jpg.jpg",
            "b/c/x.JPG",
            "é x.jpeg",
        ]
    )


def test_a_name_of_the_longest_kind(tmp_path, run):
    names = [f"{letter * 251}.png" for letter in "ab"]
    assert run(*(write_image(tmp_path / "x" / name, 9) for name in names)).predicted == 2
    pictures = tree(tmp_path / "out" / "pictures")
    assert [name.endswith(".png.jpg") and len(name) < 256 for name in pictures] == [True, True]


def test_no_picture_leaves_the_folder(tmp_path):
    lists = [["../a.png"], ["/a.png", "b.png"], ["../../a.png", "../b/../c.png"], ["../a.mp4"]]
    for names in lists:
        listed = listing([sources_path(tmp_path, name) for name in names], tmp_path / "out")
        for name in listed.names:
            target = listed.target(name, ".jpg")
            assert not target.is_absolute() and ".." not in target.parts
    listed = listing(["http://h/../../a.png?x=/../b", "http://h/a.png", "camera:0"], tmp_path, download=True)
    targets = [listed.target(name, ".jpg") for name in listed.names]
    assert len(set(targets)) == 3 and all(len(target.parts) == 1 for target in targets)


def sources_path(folder, name) -> Path:
    """A file that is named from a folder which is deep enough."""
    deep = folder / "d" / "e"
    deep.mkdir(parents=True, exist_ok=True)
    path = deep / name.lstrip("/")
    path.parent.mkdir(exist_ok=True, parents=True)
    path.touch()
    return path


def test_a_name_that_is_no_text_keeps_its_bytes(tmp_path, run):
    name = os.fsdecode(b"\xff.jpg")
    try:
        path = write_image(tmp_path / "x" / name, 9)
    except OSError:
        pytest.skip("this file system has names of text alone")
    run(path)
    assert (tmp_path / "out" / "pictures" / name).exists()
    assert b"/\xff.jpg,,0.1" in (tmp_path / "out" / "predictions.csv").read_bytes()


def test_a_class_of_commas_and_quotes_is_one_field(tmp_path, run):
    model = Fake()
    model.classes = ('a "b", c', "=d\n")
    run(write_image(tmp_path / "a.png", 2), write_image(tmp_path / "b.png", 3), model=model)
    assert [row[-1] for row in rows(tmp_path / "out")[1:]] == ['a "b", c', "=d\n"]


def test_a_name_with_the_end_of_a_line_is_one_field(tmp_path, run):
    paths = [write_image(tmp_path / "x" / name, 9) for name in ("a\nb.png", "a\rb.png")]
    run(*paths)
    assert [row[0] for row in rows(tmp_path / "out")[1:]] == list(map(str, paths))


def test_what_is_too_large_to_be_drawn_is_told_and_its_results_are_there(tmp_path, run, monkeypatch):
    monkeypatch.setattr(module, "_LONGEST", 40)
    long = write_video(tmp_path / "long.avi", size=(9000, 32))
    images = write_image(tmp_path / "a.png", 9), write_image(tmp_path / "b.png", 9, (40, 8))
    outcome = run(long, *images)
    assert (
        outcome.merged
        and outcome.images == 7
        and outcome.left_out
        == [
            f"{long}: no video of 9000 × 32 pixels can be written",
            f"{images[0]}: no picture of 48 × 32 pixels can be written",
        ]
    )
    assert tree(tmp_path / "out") == sorted([*FILES, "manifest.json", "pictures/b.png.jpg"])


def test_the_largest_picture_can_be_written(tmp_path):
    Image.new("RGB", (module._LONGEST, 1)).save(tmp_path / "a.jpg")
    with pytest.raises(OSError):
        Image.new("RGB", (module._LONGEST + 1, 1)).save(tmp_path / "b.jpg")


def test_the_options_reach_the_model(photos, run):
    model = Fake()
    run(photos, model=model, options={"score": 0.5, "batch_size": 4})
    assert len(model.options) == 3 and model.options[2] == {"score": 0.5, "batch_size": 4}  # eight images in two parts


def test_options_of_no_meaning_leave_nothing(tmp_path, photos, run):
    class Strict(Fake):
        def predict(self, source, **options):
            raise UserError("score: 2; give a number from 0 to 1")

    with pytest.raises(UserError, match="score: 2"):
        run(photos, model=Strict(), options={"score": 2})
    assert not (tmp_path / "out").exists()


def test_a_run_may_go_on_in_other_batches(tmp_path, photos, run):
    run(photos, out=tmp_path / "one")
    with pytest.raises(RuntimeError, match="killed"):
        run(photos, model=Fake(fail_after=5), options={"batch_size": 4})
    model = Fake()
    assert run(photos, model=model, options={"batch_size": 2}).merged
    assert len(model.options) == 2 and [Path(path).name for path in model.seen] == ["3.png", "4.png", "5.png", "6.png"]
    assert contents(tmp_path / "out") == contents(tmp_path / "one")


# What cannot be read


def test_what_cannot_be_read_is_told_and_the_rest_is_whole(tmp_path, photos, run, capsys):
    outcome = run(photos)
    assert outcome.predicted == 7 and outcome.merged
    assert len(outcome.left_out) == 1 and str(photos / "3.broken.jpg") in outcome.left_out[0]
    assert len(json.loads((tmp_path / "out" / "predictions.json").read_text())) == 7
    assert run(photos) == Outcome(0, True, 7, 7, outcome.left_out)  # it is told again
    assert capsys.readouterr() == ("", "")  # no bar where nobody looks


def test_nothing_can_be_read(tmp_path, run):
    (tmp_path / "a.png").write_bytes(b"none")
    outcome = run(tmp_path / "a.png")
    assert (outcome.predicted, len(outcome.left_out)) == (0, 1)
    assert json.loads((tmp_path / "out" / "predictions.json").read_text()) == []


def test_what_is_no_source_is_refused_before_anything_is_written(tmp_path, run):
    for source in (tmp_path / "gone.png", tmp_path / "*.gif"):
        with pytest.raises(UserError, match=r"gone\.png|no image or video matches"):
            run(source)
    assert not (tmp_path / "out").exists()


def test_an_address_is_fetched_only_when_asked(tmp_path, run):
    with pytest.raises(UserError, match=r"http://localhost/a\.png: nothing is fetched .* allow it with --download"):
        run("http://localhost/a.png", write_image(tmp_path / "a.png", 9))
    assert not (tmp_path / "out").exists()


def test_without_workers_nothing_is_begun(tmp_path, photos, run):
    with pytest.raises(UserError, match="--workers: -1; give 1 or more"):
        run(photos, workers=-1)
    assert not (tmp_path / "out").exists()


# Videos and cameras


def test_a_video_comes_back_with_boxes(tmp_path, run):
    video, photo = write_video(tmp_path / "clip.avi"), write_image(tmp_path / "a.png", 9)
    assert run(video, photo).predicted == 6
    out = tmp_path / "out"
    assert tree(out) == sorted([*FILES, "manifest.json", "pictures/a.png.jpg", "videos/clip.avi.mp4"])
    info = video_info(out / "videos" / "clip.avi.mp4")
    assert (info.fps, info.width, info.height, info.frames) == (12.5, 48, 32, 5)
    written, read = list(frames(out / "videos" / "clip.avi.mp4")), list(frames(video))
    assert len(written) == 5
    for frame, given in zip(written, read, strict=True):  # mp4v is lossy, and most of all in colours
        assert np.abs(frame.pixels.astype(int) - Fake().result(given).plot()).mean() < 12
    images = json.loads((out / "images.json").read_text())["images"]
    assert [image.get("index") for image in images] == [0, 1, 2, 3, 4, None]
    assert [image["id"] for image in images] == [1, 2, 3, 4, 5, 6]
    assert [row[1] for row in rows(out)[1:]] == ["1", "2", "3", "4", ""]  # the first frame has no red


def test_a_damaged_video_is_left_out(tmp_path, run):
    (tmp_path / "a.mp4").write_bytes(b"none")
    for save in ("pictures", "csv"):
        outcome = run(tmp_path / "a.mp4", write_image(tmp_path / "a.png", 9), save=[save], out=tmp_path / save)
        assert outcome.predicted == 1
        assert len(outcome.left_out) == 1 and "a.mp4" in outcome.left_out[0]
        assert not (tmp_path / save / "videos").exists()


def test_a_video_that_tells_no_frame_rate(tmp_path, run, monkeypatch):
    video, real = write_video(tmp_path / "clip.avi"), module.video_info

    def tells_none(path):
        raise UserError("the video tells no frame rate")

    monkeypatch.setattr(module, "video_info", tells_none)
    assert run(video).predicted == 5
    assert real(tmp_path / "out" / "videos" / "clip.avi.mp4").fps == 25


class Camera:
    """Stands for OpenCV's capture: Ctrl-C is pressed while its fourth frame is read."""

    name = "camera:0"

    def __init__(self, source):
        self.capture, self.reads = self, 0

    def read(self):
        self.reads += 1
        if self.reads == 4:
            signal.raise_signal(signal.SIGINT)
        return True, np.full((32, 48, 3), (0, 0, 50 * self.reads), np.uint8)

    def close(self):
        self.closed = True


def test_a_camera_is_written_until_ctrl_c(tmp_path, run, monkeypatch):
    real = sources._Capture
    monkeypatch.setattr(sources, "_Capture", lambda source: Camera(source) if source == 0 else real(source))
    clock = iter(np.arange(100) * 0.1)  # a prediction takes two and a half frames of the video
    monkeypatch.setattr(film_module.time, "monotonic", lambda: next(clock))
    before = signal.getsignal(signal.SIGINT)
    outcome = run("camera:0")
    assert signal.getsignal(signal.SIGINT) is before
    assert outcome.predicted == 4 and outcome.merged
    assert len(json.loads((tmp_path / "out" / "predictions.json").read_text())) == 4
    (video,) = (tmp_path / "out" / "videos").iterdir()
    assert video.suffix == ".mp4" and "camera" in video.name
    # The four are written 0.1, 0.2, 0.3 and 0.4 seconds after the start, when floor(25 t) + 1 frames are due.
    assert video_info(video).frames == 11
    with pytest.raises(UserError, match="camera:0 cannot be shared"):
        run("camera:0", shard=(1, 2), out=tmp_path / "shared")


def test_of_a_fast_camera_not_every_frame_is_kept(tmp_path, monkeypatch):
    clock = iter(np.arange(100) * 0.01)
    monkeypatch.setattr(film_module.time, "monotonic", lambda: next(clock))
    with film_module.film(tmp_path / "a.mp4", None) as write:
        for _ in range(10):
            write(np.zeros((32, 48, 3), np.uint8))
    assert video_info(tmp_path / "a.mp4").frames == 3  # floor(25 * 0.1) + 1


def test_a_picture_of_another_size_is_made_to_fit_the_video(tmp_path):
    with film_module.film(tmp_path / "a.mp4", 10) as write:
        for shape in [(32, 48, 3), (64, 20, 3), (32, 48, 3)]:
            write(np.full(shape, 200, np.uint8))
    read = [frame.pixels for frame in frames(tmp_path / "a.mp4")]
    assert [pixels.shape for pixels in read] == [(32, 48, 3)] * 3
    assert all(np.abs(pixels.astype(int) - 200).max() < 8 for pixels in read)


def test_a_picture_that_no_video_can_hold(tmp_path):
    with (
        pytest.raises(UserError, match="no video of 1 × 1 pixels can be written"),
        film_module.film(tmp_path / "a.mp4", 10) as write,
    ):
        write(np.zeros((1, 1, 3), np.uint8))


def test_a_second_ctrl_c_interrupts():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    try:
        with pytest.raises(KeyboardInterrupt), film_module.stopped_by_interrupt() as stopped:
            signal.raise_signal(signal.SIGINT)
            assert stopped.is_set()
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


# Whatever ends it


def test_a_run_that_was_killed_goes_on(tmp_path, photos, run):
    run(photos, out=tmp_path / "undisturbed")
    with pytest.raises(RuntimeError, match="killed"):
        run(photos, model=Fake(fail_after=3))
    out = tmp_path / "out"
    assert len(tree(out / "parts")) == 4 and not (out / "predictions.json").exists()
    # What a process leaves that has no time for anything, in each place where it writes.
    for name in ("parts/.draft-0.jsonl", "parts/.draft-1.jpg", ".draft-2.json", "parts/.draft-3.mp4"):
        (out / name).write_bytes(b"{")
    model = Fake()
    assert run(photos, model=model).merged
    assert [Path(path).name for path in model.seen] == ["3.png", "4.png", "5.png", "6.png"]
    assert contents(out) == contents(tmp_path / "undisturbed")
    assert tree(out) == tree(tmp_path / "undisturbed")
    finished = Fake()
    assert run(photos, model=finished).merged and finished.seen == []


def test_a_part_that_is_there_has_its_pictures(tmp_path, photos, run, monkeypatch):
    def full_after(written, real=Result.plot):
        left = iter(range(written))

        def plot(self, draft):
            if next(left, None) is None:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(draft))
            return real(self, draft)

        return plot

    run(photos, out=tmp_path / "undisturbed")
    for written in (0, 2):
        monkeypatch.setattr(Result, "plot", full_after(written))
        with pytest.raises(UserError, match="No space left on device"):
            run(photos)
        monkeypatch.undo()
        assert len(tree(tmp_path / "out" / "pictures")) == len(tree(tmp_path / "out" / "parts")) == written
    assert run(photos).merged
    assert tree(tmp_path / "out") == tree(tmp_path / "undisturbed")


def test_a_process_that_is_killed_loses_the_part_at_work_alone(tmp_path, photos):
    (tmp_path / "best.ckpt").write_bytes(b"weights")
    code = f"""
import importlib.util, os, signal, sys
from pathlib import Path
from unittest.mock import Mock
spec = importlib.util.spec_from_file_location("test_predict", {str(Path(__file__))!r})
tests = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tests)
class Killed(tests.Fake):
    def result(self, frame):
        if len(self.seen) == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().result(frame)
photos, out, checkpoint = map(Path, sys.argv[1:])
tests.predict(Killed(), [photos], out, checkpoint=checkpoint)
"""
    paths = [photos, tmp_path / "out", tmp_path / "best.ckpt"]
    assert subprocess.run([sys.executable, "-c", code, *paths]).returncode == -signal.SIGKILL
    model = Fake()
    outcome = predict(model, [photos], tmp_path / "out", checkpoint=tmp_path / "best.ckpt")
    assert outcome.merged and [Path(path).name for path in model.seen] == ["4.png", "5.png", "6.png"]
    assert tree(tmp_path / "out")[-1].startswith("predictions") and not (tmp_path / "out" / "parts").exists()


def test_parts_of_several_images(tmp_path, run):
    for i in range(131):
        write_image(tmp_path / "photos" / f"{i:03}.png", i, (4, 3))
    write_video(tmp_path / "photos" / "050.avi", 3)
    listed = listing([tmp_path / "photos"], tmp_path / "out")
    assert [listed.size(batch) for batch in (1, 2, 3, 8)] == [3, 4, 3, 8]
    sizes = [len(part) for part in listed.parts(3)]
    assert sum(sizes) == 132 and set(sizes) == {1, 2, 3}
    assert [part for part in listed.parts(8) if part[0].endswith("avi")] == [[str(tmp_path / "photos" / "050.avi")]]
    with pytest.raises(RuntimeError, match="killed"):
        run(tmp_path / "photos", model=Fake(fail_after=100), save=["coco"])
    model = Fake()
    assert run(tmp_path / "photos", model=model, save=["coco"]).merged
    assert 34 <= len(model.seen) <= 36  # of 134, but those of the part that was at work
    predictions = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert len(predictions) == 130 + 2 and len({one["image_id"] for one in predictions}) == 132


def test_another_run_is_not_mixed_in(tmp_path, photos, run):
    run(photos, options={"score": 0.5})
    out = tmp_path / "out"
    before = contents(out)
    with pytest.raises(UserError, match=r"with score 0\.5 and not 0\.25; give the same options or another --out"):
        run(photos, options={"score": 0.25})
    with pytest.raises(UserError, match=r"with score 0\.5 and not None"):
        run(photos)
    with pytest.raises(UserError, match=r"save .*pictures.* and not .*csv"):
        run(photos, options={"score": 0.5}, save=["csv"])
    write_image(photos / "new.png", 9)
    with pytest.raises(UserError, match="images 8 and not 9"):
        run(photos, options={"score": 0.5})
    (photos / "new.png").unlink()
    (photos / "6.png").rename(photos / "7.png")
    with pytest.raises(UserError, match=r"list of files .* and not "):
        run(photos, options={"score": 0.5})
    (photos / "7.png").rename(photos / "6.png")
    (tmp_path / "best.ckpt").write_bytes(b"others")
    with pytest.raises(UserError, match=r"checkpoint .* and not ") as told:
        run(photos, options={"score": 0.5})
    assert "\n" not in str(told.value)
    (tmp_path / "best.ckpt").write_bytes(b"weights")
    assert run(photos, options={"score": 0.5, "batch_size": 8, "device": "cuda:1"}).merged  # how, and not what
    assert contents(out) == before


# Shards


def test_shards_merge_to_what_one_run_gives(tmp_path, photos, run):
    write_video(photos / "5.avi")
    run(photos, out=tmp_path / "one")
    outcomes, seen = [], []
    for number in (2, 3, 1):
        model = Fake()
        outcomes.append(run(photos, model=model, shard=(number, 3)))
        seen.append(model.seen)
    assert [outcome.merged for outcome in outcomes] == [False, False, True]
    assert sum(outcome.predicted for outcome in outcomes) == len([*chain(*seen)]) == 12
    assert all(not set(one) & set(other) for one, other in [seen[:2], seen[1:], seen[::2]])
    assert contents(tmp_path / "out") == contents(tmp_path / "one")
    assert tree(tmp_path / "out") == tree(tmp_path / "one")
    assert outcomes[-1].left_out == run(photos, out=tmp_path / "one").left_out


def test_a_run_without_shards_does_what_a_shard_left(tmp_path, photos, run):
    run(photos, out=tmp_path / "one")
    run(photos, shard=(2, 2))
    model = Fake()
    assert run(photos, model=model).merged
    assert [Path(path).name for path in model.seen] == ["0.png", "2.png", "3.png", "5.png"]
    assert contents(tmp_path / "out") == contents(tmp_path / "one")


def test_more_shards_than_images(tmp_path, run):
    photo = write_image(tmp_path / "a.png", 9)
    assert run(photo, shard=(3, 3)).predicted == 0
    assert run(photo, shard=(1, 3)).merged
    assert run(photo, shard=(2, 3)).merged


@pytest.mark.parametrize("shard", [(0, 3), (4, 3), (1, 0), (0, 0), (-1, 2)])
def test_a_shard_out_of_range_is_refused(photos, run, shard):
    with pytest.raises(UserError, match=f"--shard: {shard[0]}/{shard[1]}; give i/n with i from 1 to n"):
        run(photos, shard=shard)


def test_the_text_of_a_shard():
    assert shard_of("2/8") == (2, 8)
    for text in ("", "2", "2/", "/8", "a/8", "2/8/1", "-1/8", "1.0/2"):
        with pytest.raises(UserError, match=r"--shard: .*; give i/n"):
            shard_of(text)


def test_two_that_merge_at_once_write_the_same(tmp_path, photos, run, monkeypatch):
    run(photos, out=tmp_path / "one")
    finished = []
    with monkeypatch.context() as patch:
        patch.setattr(Parts, "merge", lambda *_: None)
        run(photos)
    parts = lambda: Parts(tmp_path / "out", json.loads((tmp_path / "out" / "manifest.json").read_text())["asked"], 1)  # noqa: E731
    # The second begins, and has read some parts, before the first has finished and removed them.
    slow, real = parts(), Parts._lines

    def interrupted(self, *given):
        for number, line in enumerate(real(self, *given)):
            if number == 4 and self is slow:
                parts().merge(8)
                finished.append(contents(tmp_path / "out"))
            yield line

    monkeypatch.setattr(Parts, "_lines", interrupted)
    with pytest.raises(FileNotFoundError):
        slow.merge(8)
    assert finished == [contents(tmp_path / "one")] == [contents(tmp_path / "out")]
    assert tree(tmp_path / "out") == tree(tmp_path / "one")


@pytest.mark.parametrize("links", [True, False])
def test_of_two_that_begin_at_once_the_first_says_how(tmp_path, monkeypatch, links):
    """The slower one has written its manifest, but not put it in place, when the other does."""
    real, asked = module_parts._linked, {"save": []}

    def slow(draft, path):
        monkeypatch.setattr(module_parts, "_linked", real)
        assert Parts(tmp_path / "out", asked, 1).size == 1
        return real(draft, path)

    monkeypatch.setattr(module_parts, "_linked", slow)
    if not links:
        monkeypatch.setattr(Path, "hardlink_to", Mock(side_effect=PermissionError))
    assert Parts(tmp_path / "out", asked, 16).size == (1 if links else 16)
    assert tree(tmp_path / "out") == ["manifest.json"]


def test_whoever_is_overtaken_has_finished_too(tmp_path, photos, run, monkeypatch):
    real = Parts.merge

    def overtaken(self, *given):
        monkeypatch.setattr(Parts, "merge", real)
        assert run(photos).merged
        real(self, *given)

    monkeypatch.setattr(Parts, "merge", overtaken)
    outcome = run(photos)
    assert outcome.merged and len(outcome.left_out) == 1
    assert not (tmp_path / "out" / "parts").exists()


def test_many_processes_in_one_folder(tmp_path, photos, run):
    run(photos, out=tmp_path / "one")
    outcomes, start = [], threading.Barrier(4)

    def work(shard):
        start.wait()
        outcomes.append(run(photos, shard=shard))

    threads = [threading.Thread(target=work, args=[shard]) for shard in [(1, 2), (2, 2), (1, 1), (1, 1)]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 4 and sum(outcome.merged for outcome in outcomes) >= 2
    assert contents(tmp_path / "out") == contents(tmp_path / "one")
    assert tree(tmp_path / "out") == tree(tmp_path / "one")


# The folder


def test_a_folder_of_other_things_is_refused(tmp_path, photos, run):
    (tmp_path / "file").write_text("mine")
    write_image(photos / "album" / "a.png", 9)
    with pytest.raises(UserError, match=r"file: this is a file; give another --out"):
        run(photos, out=tmp_path / "file")
    with pytest.raises(UserError, match="Not a directory"):
        run(photos, out=tmp_path / "file" / "below")
    with pytest.raises(UserError, match="the folder holds something else"):
        run(photos, out=photos / "album")
    (tmp_path / "manifests").mkdir()
    for text in ("", "{", "[]", "{}", '{"asked": 1}', "null"):
        (tmp_path / "manifests" / "manifest.json").write_text(text)
        with pytest.raises(UserError, match=r"manifest\.json: no manifest of detect predict"):
            run(photos, out=tmp_path / "manifests")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_that_cannot_be_written(tmp_path, photos, run, monkeypatch):
    def refuse(*given, **options):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(tmp_path / "out"))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(UserError, match=r"out: cannot be written \(Permission denied\)"):
        run(photos)


def test_a_full_disk_while_merging(tmp_path, photos, run, monkeypatch):
    def full(descriptor):
        if len(list((tmp_path / "out" / "parts").glob("0*"))) == 8:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device") as told:
        run(photos)
    assert "\n" not in str(told.value) and str(tmp_path / "out") in str(told.value)
    monkeypatch.undo()
    model = Fake()
    assert run(photos, model=model).merged and model.seen == []


def test_a_video_that_is_not_whole_is_no_video(tmp_path, run, monkeypatch):
    monkeypatch.setattr(film_module, "_length", lambda path: 2)
    with pytest.raises(UserError, match="the video could not be written whole; free some space"):
        run(write_video(tmp_path / "clip.avi"))
    assert tree(tmp_path / "out") == ["manifest.json"]


def test_a_missing_checkpoint(tmp_path, photos):
    with pytest.raises(UserError, match=r"gone\.ckpt: the file cannot be read"):
        predict(Fake(), [photos], tmp_path / "out", checkpoint=tmp_path / "gone.ckpt")


def test_the_folder_of_a_run_is_no_source_of_it(tmp_path, photos, run):
    out = photos / "out"
    with pytest.raises(RuntimeError, match="killed"):
        run(photos, out=out, model=Fake(fail_after=3))
    assert tree(out / "pictures")
    assert run(photos, out=out).merged
    assert len(json.loads((out / "predictions.json").read_text())) == 7
    with pytest.raises(UserError, match="all that is there is in"):
        run(out / "pictures", out=out)


def test_whole_or_not_at_all(tmp_path):
    target = tmp_path / "deep" / "a.txt"
    with whole(target, tmp_path):
        pass
    assert tree(tmp_path) == []
    with whole(target, tmp_path) as draft:
        draft.write_text("one")
        assert draft.suffix == ".txt" and not target.exists()
    with pytest.raises(ValueError, match="half"), whole(target, tmp_path) as draft:
        draft.write_text("tw")
        raise ValueError("half")
    assert target.read_text() == "one" and tree(tmp_path) == ["deep/a.txt"]


def test_memory_does_not_grow_with_the_source(tmp_path, run):
    for i in range(20):
        write_image(tmp_path / "photos" / f"{i}.png", i + 1)
    write_video(tmp_path / "photos" / "clip.avi", 20)
    for save in (["pictures"], ["coco"]):
        model = Fake()
        run(tmp_path / "photos", model=model, save=save, out=tmp_path / save[0])
        assert len(model.seen) == 40 and model.most <= 3
