import csv
import errno
import json
import os
import signal
import subprocess
import sys
import threading
import weakref
from dataclasses import replace
from itertools import chain
from pathlib import Path
from unittest.mock import Mock

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from detect.data.decode import decode
from detect.errors import UserError
from detect.files import atomic
from detect.prediction import predict as module
from detect.prediction import video as video_module
from detect.prediction.listing import list_sources
from detect.prediction.output_folder import OutputFolder
from detect.prediction.predict import Outcome, parse_shard, predict
from detect.prediction.result import Result
from detect.prediction.sources import frames, video_info
from detect.prediction.sources import video as sources_video

FILES = ["images.json", "predictions.csv", "predictions.json"]


class Fake:
    """Detector of one object, whose score and class follow from the red of the image, or of none if red is 0."""

    classes, category_ids, predicts_masks = ("cat", "dög"), (7, 3), False

    def __init__(self, fail_after=None):
        self.fail_after, self.seen, self.options, self.alive, self.most = fail_after, [], [], [], 0

    def check_options(self, **options):
        pass

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
            pixels=None if frame.reloadable else frame.pixels,
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
    """Seven images of red 10, 20, … 70 in the order of their names, and a file among them that is not an image."""
    for i in range(7):
        write_image(tmp_path / "photos" / f"{i}.png", 10 * (i + 1))
    (tmp_path / "photos" / "3.broken.jpg").write_bytes(b"none")
    return tmp_path / "photos"


@pytest.fixture
def run(tmp_path):
    """`predict` with a checkpoint and, by default, a `Fake` model and the folder `out`."""
    (tmp_path / "best.ckpt").write_bytes(b"weights")

    def run(*given, model=None, out=tmp_path / "out", **options):
        return predict(model or Fake(), list(given), out, checkpoint=tmp_path / "best.ckpt", **options)

    return run


def tree(folder) -> list[str]:
    """Return all files in a folder, hidden ones included, relative to it."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def contents(folder) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


def rows(out) -> list[list[str]]:
    with (out / "predictions.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def test_torch_is_not_needed():
    code = "import sys, detect.prediction.predict; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout.split() == [b"False"]


# Written files


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


class FakeWithMasks(Fake):
    """A `Fake` whose objects have masks in the middle of their boxes."""

    predicts_masks = True

    def result(self, frame):
        result = super().result(frame)
        cells = np.zeros((len(result), 28, 28), np.float32)
        cells[:, 7:21, 7:21] = 1
        return replace(result, mask_probabilities=cells)


def test_masks_by_hand(tmp_path, run):
    """They are in the COCO results, in another column of the CSV file, in pictures and in videos."""
    empty, one = write_image(tmp_path / "empty.png", 0), write_image(tmp_path / "one.png", 64)
    video = write_video(tmp_path / "clip.avi", count=2)
    run(one, empty, video, model=FakeWithMasks())
    out, expected = tmp_path / "out", FakeWithMasks().result(next(frames(one)))
    (entry, frame), table = json.loads((out / "predictions.json").read_text()), rows(out)
    assert entry == expected.to_coco(1)[0] and frame["image_id"] == 4
    mask = coco_mask.decode(entry["segmentation"])
    assert mask.shape == (32, 48) and mask[9:24, 12:36].all() and mask.sum() == 15 * 24
    assert table[0][-2:] == ["name", "polygons"] and [len(row) for row in table] == [10, 10, 10]
    assert table[1][:-1] == [str(one), "", "0.1", "1.0", "47.7", "32.0", "0.25", "0", "cat"]
    assert sorted(zip(*[iter(json.loads(table[1][-1])[0])] * 2, strict=True)) == [(12, 9), (12, 24), (36, 9), (36, 24)]
    drawn = decode(out / "pictures" / "one.png.jpg").astype(int)
    assert np.abs(drawn - expected.plot()).mean() < 6 < np.abs(drawn - Fake().result(next(frames(one))).plot()).mean()
    for written, given in zip(frames(out / "videos" / "clip.avi.mp4"), frames(video), strict=True):
        assert np.abs(written.pixels.astype(int) - FakeWithMasks().result(given).plot()).mean() < 12


def test_a_run_with_masks_is_continued(tmp_path, run):
    images = [write_image(tmp_path / f"{red}.png", red) for red in (0, 10, 20)]
    with pytest.raises(RuntimeError, match="killed"):
        run(*images, model=FakeWithMasks(fail_after=2))
    run(*images, model=FakeWithMasks())
    run(*images, model=FakeWithMasks(), out=tmp_path / "at once")
    assert contents(tmp_path / "out") == contents(tmp_path / "at once")


def test_images_and_predictions_are_a_coco_data_set_with_its_results(tmp_path, photos, run, capsys):
    run(photos)
    coco = COCO(str(tmp_path / "out" / "images.json"))
    results = coco.loadRes(str(tmp_path / "out" / "predictions.json"))
    assert sorted(results.getImgIds()) == [1, 2, 3, 4, 5, 6, 7]
    assert [one["category_id"] for one in results.loadAnns(results.getAnnIds())] == [7] * 7
    assert coco.loadCats(3)[0]["name"] == "dög"


def test_no_detections_are_an_empty_list(tmp_path, run):
    run(write_image(tmp_path / "a.png", 0))
    assert json.loads((tmp_path / "out" / "predictions.json").read_text()) == []
    assert len(rows(tmp_path / "out")) == 1
    assert COCO(str(tmp_path / "out" / "images.json")).getImgIds() == [1]


@pytest.mark.parametrize("save", [["csv"], ["coco"], ["pictures"], ["csv", "pictures"]])
def test_save_chooses_the_files(tmp_path, run, save):
    run(write_image(tmp_path / "x" / "a.jpg", 9), save=save)
    of = {"csv": ["predictions.csv"], "coco": ["predictions.json", "images.json"], "pictures": ["pictures/a.jpg"]}
    assert tree(tmp_path / "out") == sorted(["manifest.json", *(name for kind in save for name in of[kind])])


def test_many_images_have_pictures_only_on_request(tmp_path, photos, run, monkeypatch):
    monkeypatch.setattr(module, "MAX_PICTURES", 8)
    run(photos, out=tmp_path / "few")
    monkeypatch.setattr(module, "MAX_PICTURES", 7)
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


def test_the_longest_names(tmp_path, run):
    names = [f"{letter * 251}.png" for letter in "ab"]
    assert run(*(write_image(tmp_path / "x" / name, 9) for name in names)).predicted == 2
    pictures = tree(tmp_path / "out" / "pictures")
    assert [name.endswith(".png.jpg") and len(name) < 256 for name in pictures] == [True, True]
    name = f"{'c' * 246}.jpg"  # short enough for the picture, but not for its draft if that had more letters
    assert run(write_image(tmp_path / "y" / name, 9), out=tmp_path / "jpg").predicted == 1
    assert tree(tmp_path / "jpg" / "pictures") == [name]


def test_output_paths_stay_in_the_folder(tmp_path):
    lists = [["../a.png"], ["/a.png", "b.png"], ["../../a.png", "../b/../c.png"], ["../a.mp4"]]
    for names in lists:
        listed = list_sources([sources_path(tmp_path, name) for name in names], tmp_path / "out")
        for name in listed.names:
            target = listed.output_path(name, ".jpg")
            assert not target.is_absolute() and ".." not in target.parts
    listed = list_sources(["http://h/../../a.png?x=/../b", "http://h/a.png", "camera:0"], tmp_path, download=True)
    targets = [listed.output_path(name, ".jpg") for name in listed.names]
    assert len(set(targets)) == 3 and all(len(target.parts) == 1 for target in targets)


def sources_path(folder, name) -> Path:
    """Make an empty file, by its path relative to a deep folder."""
    deep = folder / "d" / "e"
    deep.mkdir(parents=True, exist_ok=True)
    path = deep / name.lstrip("/")
    path.parent.mkdir(exist_ok=True, parents=True)
    path.touch()
    return path


def test_a_name_that_is_not_valid_text_keeps_its_bytes(tmp_path, run):
    name = os.fsdecode(b"\xff.jpg")
    try:
        path = write_image(tmp_path / "x" / name, 9)
    except OSError:
        pytest.skip("this file system has names of text alone")
    run(path)
    assert (tmp_path / "out" / "pictures" / name).exists()
    assert b"/\xff.jpg,,0.1" in (tmp_path / "out" / "predictions.csv").read_bytes()


def test_a_class_name_with_commas_and_quotes_is_one_field(tmp_path, run):
    model = Fake()
    model.classes = ('a "b", c', "=d\n")
    run(write_image(tmp_path / "a.png", 2), write_image(tmp_path / "b.png", 3), model=model)
    assert [row[-1] for row in rows(tmp_path / "out")[1:]] == ['a "b", c', "=d\n"]


def test_a_name_with_a_line_end_is_one_field(tmp_path, run):
    paths = [write_image(tmp_path / "x" / name, 9) for name in ("a\nb.png", "a\rb.png")]
    run(*paths)
    assert [row[0] for row in rows(tmp_path / "out")[1:]] == list(map(str, paths))


def test_results_that_are_too_large_to_draw_are_still_written(tmp_path, run, monkeypatch):
    monkeypatch.setattr(module, "_MAX_JPEG_SIDE", 40)
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
    Image.new("RGB", (module._MAX_JPEG_SIDE, 1)).save(tmp_path / "a.jpg")
    with pytest.raises(OSError):
        Image.new("RGB", (module._MAX_JPEG_SIDE + 1, 1)).save(tmp_path / "b.jpg")


def test_the_options_reach_the_model(photos, run):
    model = Fake()
    run(photos, model=model, options={"score": 0.5, "batch_size": 4})
    assert len(model.options) == 2 and model.options[1] == {"score": 0.5, "batch_size": 4}  # eight images in two parts


def test_invalid_options_leave_no_folder(tmp_path, photos, run):
    class Strict(Fake):
        def check_options(self, **options):
            raise UserError("score: 2; give a number from 0 to 1")

    with pytest.raises(UserError, match="score: 2"):
        run(photos, model=Strict(), options={"score": 2})
    assert not (tmp_path / "out").exists()


def test_a_run_can_continue_with_another_batch_size(tmp_path, photos, run):
    run(photos, out=tmp_path / "one")
    with pytest.raises(RuntimeError, match="killed"):
        run(photos, model=Fake(fail_after=5), options={"batch_size": 4})
    model = Fake()
    assert run(photos, model=model, options={"batch_size": 2}).merged
    assert len(model.options) == 1 and [Path(path).name for path in model.seen] == ["3.png", "4.png", "5.png", "6.png"]
    assert contents(tmp_path / "out") == contents(tmp_path / "one")


# Unreadable images


def test_unreadable_images_are_left_out(tmp_path, photos, run, capsys):
    outcome = run(photos)
    assert outcome.predicted == 7 and outcome.merged
    assert len(outcome.left_out) == 1 and str(photos / "3.broken.jpg") in outcome.left_out[0]
    assert len(json.loads((tmp_path / "out" / "predictions.json").read_text())) == 7
    assert run(photos) == Outcome(0, True, 7, 7, outcome.left_out)  # it is reported again
    assert capsys.readouterr() == ("", "")  # no progress bar without a terminal


def test_no_image_can_be_read(tmp_path, run):
    (tmp_path / "a.png").write_bytes(b"none")
    outcome = run(tmp_path / "a.png")
    assert (outcome.predicted, len(outcome.left_out)) == (0, 1)
    assert json.loads((tmp_path / "out" / "predictions.json").read_text()) == []


def test_missing_sources_are_refused_before_anything_is_written(tmp_path, run):
    for source in (tmp_path / "gone.png", tmp_path / "*.gif"):
        with pytest.raises(UserError, match=r"gone\.png|no image or video matches"):
            run(source)
    assert not (tmp_path / "out").exists()


def test_web_addresses_need_permission(tmp_path, run):
    with pytest.raises(
        UserError, match=r"http://localhost/a\.png: downloads are disabled; enable them with --download"
    ):
        run("http://localhost/a.png", write_image(tmp_path / "a.png", 9))
    assert not (tmp_path / "out").exists()


def test_invalid_workers_leave_no_folder(tmp_path, photos, run):
    with pytest.raises(UserError, match="--workers: -1; give 1 or more"):
        run(photos, workers=-1)
    assert not (tmp_path / "out").exists()


# Videos and cameras


def test_an_annotated_video(tmp_path, run):
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


def test_a_video_without_frame_rate(tmp_path, run, monkeypatch):
    video, real = write_video(tmp_path / "clip.avi"), module.video_info

    def no_frame_rate(path):
        raise UserError("the video has no frame rate")

    monkeypatch.setattr(module, "video_info", no_frame_rate)
    assert run(video).predicted == 5
    assert real(tmp_path / "out" / "videos" / "clip.avi.mp4").fps == 25


class Camera:
    """Camera during whose fourth frame Ctrl-C is pressed."""

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
    real = sources_video._Capture
    monkeypatch.setattr(sources_video, "_Capture", lambda source: Camera(source) if source == 0 else real(source))
    clock = iter(np.arange(100) * 0.1)  # a prediction takes as long as two and a half frames of the video
    monkeypatch.setattr(video_module.time, "monotonic", lambda: next(clock))
    before = signal.getsignal(signal.SIGINT)
    outcome = run("camera:0")
    assert signal.getsignal(signal.SIGINT) is before
    assert outcome.predicted == 4 and outcome.merged
    assert len(json.loads((tmp_path / "out" / "predictions.json").read_text())) == 4
    (video,) = (tmp_path / "out" / "videos").iterdir()
    assert video.suffix == ".mp4" and "camera" in video.name
    # They are written 0.1, 0.2, 0.3 and 0.4 seconds after the start, when floor(25 t) + 1 frames are due.
    assert video_info(video).frames == 11
    with pytest.raises(UserError, match="camera:0 cannot be split"):
        run("camera:0", shard=(1, 2), out=tmp_path / "shared")


def test_frames_of_a_fast_camera_are_dropped(tmp_path, monkeypatch):
    clock = iter(np.arange(100) * 0.01)
    monkeypatch.setattr(video_module.time, "monotonic", lambda: next(clock))
    with video_module.video_writer(tmp_path / "a.mp4", None) as write:
        for _ in range(10):
            write(np.zeros((32, 48, 3), np.uint8))
    assert video_info(tmp_path / "a.mp4").frames == 3  # floor(25 * 0.1) + 1


def test_a_picture_of_another_size_is_resized(tmp_path):
    with video_module.video_writer(tmp_path / "a.mp4", 10) as write:
        for shape in [(32, 48, 3), (64, 20, 3), (32, 48, 3)]:
            write(np.full(shape, 200, np.uint8))
    read = [frame.pixels for frame in frames(tmp_path / "a.mp4")]
    assert [pixels.shape for pixels in read] == [(32, 48, 3)] * 3
    assert all(np.abs(pixels.astype(int) - 200).max() < 8 for pixels in read)


def test_a_picture_too_small_for_a_video(tmp_path):
    with (
        pytest.raises(UserError, match="no video of 1 × 1 pixels can be written"),
        video_module.video_writer(tmp_path / "a.mp4", 10) as write,
    ):
        write(np.zeros((1, 1, 3), np.uint8))


def test_a_second_ctrl_c_interrupts():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    try:
        with pytest.raises(KeyboardInterrupt), video_module.stop_on_interrupt() as stopped:
            signal.raise_signal(signal.SIGINT)
            assert stopped.is_set()
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


# Interrupted runs


def test_a_killed_run_continues(tmp_path, photos, run):
    run(photos, out=tmp_path / "undisturbed")
    with pytest.raises(RuntimeError, match="killed"):
        run(photos, model=Fake(fail_after=3))
    out = tmp_path / "out"
    assert len(tree(out / "parts")) == 4 and not (out / "predictions.json").exists()
    # Drafts that a killed process leaves, in each folder that it writes to.
    for name in ("parts/.000003.0.part.jsonl", "parts/.a.1.part.jpg", ".manifest.2.part.json", "parts/.b.3.part.mp4"):
        (out / name).write_bytes(b"{")
    model = Fake()
    assert run(photos, model=model).merged
    assert [Path(path).name for path in model.seen] == ["3.png", "4.png", "5.png", "6.png"]
    assert contents(out) == contents(tmp_path / "undisturbed")
    assert tree(out) == tree(tmp_path / "undisturbed")
    finished = Fake()
    assert run(photos, model=finished).merged and finished.seen == []


def test_a_written_part_has_its_pictures(tmp_path, photos, run, monkeypatch):
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


def test_a_killed_process_loses_only_the_unfinished_part(tmp_path, photos):
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
    listed = list_sources([tmp_path / "photos"], tmp_path / "out")
    assert [listed.part_size(batch) for batch in (1, 2, 3, 8)] == [3, 4, 3, 8]
    sizes = [len(part) for part in listed.parts(3)]
    assert sum(sizes) == 132 and set(sizes) == {1, 2, 3}
    assert [part for part in listed.parts(8) if part[0].endswith("avi")] == [[str(tmp_path / "photos" / "050.avi")]]
    with pytest.raises(RuntimeError, match="killed"):
        run(tmp_path / "photos", model=Fake(fail_after=100), save=["coco"])
    model = Fake()
    assert run(tmp_path / "photos", model=model, save=["coco"]).merged
    assert 34 <= len(model.seen) <= 36  # of 134, and those of the unfinished part
    predictions = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert len(predictions) == 130 + 2 and len({one["image_id"] for one in predictions}) == 132


def test_another_run_is_refused(tmp_path, photos, run):
    run(photos, options={"score": 0.5})
    out = tmp_path / "out"
    before = contents(out)
    with pytest.raises(UserError, match=r"with score 0\.5 instead of 0\.25; give the same options or another --out"):
        run(photos, options={"score": 0.25})
    with pytest.raises(UserError, match=r"with score 0\.5 instead of None"):
        run(photos)
    with pytest.raises(UserError, match=r"save .*pictures.* instead of .*csv"):
        run(photos, options={"score": 0.5}, save=["csv"])
    write_image(photos / "new.png", 9)
    with pytest.raises(UserError, match="images 8 instead of 9"):
        run(photos, options={"score": 0.5})
    (photos / "new.png").unlink()
    (photos / "6.png").rename(photos / "7.png")
    with pytest.raises(UserError, match=r"list of files .* instead of "):
        run(photos, options={"score": 0.5})
    (photos / "7.png").rename(photos / "6.png")
    (tmp_path / "best.ckpt").write_bytes(b"others")
    with pytest.raises(UserError, match=r"checkpoint .* instead of ") as error:
        run(photos, options={"score": 0.5})
    assert "\n" not in str(error.value)
    (tmp_path / "best.ckpt").write_bytes(b"weights")
    assert run(
        photos, options={"score": 0.5, "batch_size": 8, "device": "cuda:1"}
    ).merged  # these affect speed, not results
    assert contents(out) == before


# Shards


def test_merged_shards_equal_a_single_run(tmp_path, photos, run):
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


def test_a_run_without_a_shard_does_the_rest(tmp_path, photos, run):
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


def test_parsing_a_shard():
    assert parse_shard("2/8") == (2, 8)
    for text in ("", "2", "2/", "/8", "a/8", "2/8/1", "-1/8", "1.0/2"):
        with pytest.raises(UserError, match=r"--shard: .*; give i/n"):
            parse_shard(text)


def test_two_processes_that_merge_write_the_same(tmp_path, photos, run, monkeypatch):
    run(photos, out=tmp_path / "one")
    finished = []
    with monkeypatch.context() as patch:
        patch.setattr(OutputFolder, "merge", lambda *_: None)
        run(photos)
    settings = json.loads((tmp_path / "out" / "manifest.json").read_text())["asked"]
    # The second process has read some parts when the first one finishes and removes them.
    slow, real = OutputFolder(tmp_path / "out", settings, 1), OutputFolder._read_parts

    def interrupted(self, *given):
        for number, line in enumerate(real(self, *given)):
            if number == 4 and self is slow:
                OutputFolder(tmp_path / "out", settings, 1).merge(8)
                finished.append(contents(tmp_path / "out"))
            yield line

    monkeypatch.setattr(OutputFolder, "_read_parts", interrupted)
    with pytest.raises(FileNotFoundError):
        slow.merge(8)
    assert finished == [contents(tmp_path / "one")] == [contents(tmp_path / "out")]
    assert tree(tmp_path / "out") == tree(tmp_path / "one")


@pytest.mark.parametrize("links", [True, False])
def test_of_two_processes_that_start_the_first_writes_the_manifest(tmp_path, monkeypatch, links):
    """The second process writes its manifest after the first has written, but not renamed, its own."""
    real, asked = atomic._link, {"save": []}

    def slow(draft, path):
        monkeypatch.setattr(atomic, "_link", real)
        assert OutputFolder(tmp_path / "out", asked, 1).part_size == 1
        return real(draft, path)

    monkeypatch.setattr(atomic, "_link", slow)
    if not links:
        monkeypatch.setattr(Path, "hardlink_to", Mock(side_effect=PermissionError))
    assert OutputFolder(tmp_path / "out", asked, 16).part_size == (1 if links else 16)
    assert tree(tmp_path / "out") == ["manifest.json"]


def test_a_run_that_another_process_merges_is_complete(tmp_path, photos, run, monkeypatch):
    real = OutputFolder.merge

    def overtaken(self, *given):
        monkeypatch.setattr(OutputFolder, "merge", real)
        assert run(photos).merged
        real(self, *given)

    monkeypatch.setattr(OutputFolder, "merge", overtaken)
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


def test_a_folder_with_other_files_is_refused(tmp_path, photos, run):
    (tmp_path / "file").write_text("mine")
    write_image(photos / "album" / "a.png", 9)
    with pytest.raises(UserError, match=r"file: this is a file; give another --out"):
        run(photos, out=tmp_path / "file")
    with pytest.raises(UserError, match="Not a directory"):
        run(photos, out=tmp_path / "file" / "below")
    with pytest.raises(UserError, match="the folder has other files"):
        run(photos, out=photos / "album")
    (tmp_path / "manifests").mkdir()
    for text in ("", "{", "[]", "{}", '{"asked": 1}', "null"):
        (tmp_path / "manifests" / "manifest.json").write_text(text)
        with pytest.raises(UserError, match=r"manifest\.json: not a manifest of detect predict"):
            run(photos, out=tmp_path / "manifests")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_without_write_permission(tmp_path, photos, run, monkeypatch):
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
    with pytest.raises(UserError, match="No space left on device") as error:
        run(photos)
    assert "\n" not in str(error.value) and str(tmp_path / "out") in str(error.value)
    monkeypatch.undo()
    model = Fake()
    assert run(photos, model=model).merged and model.seen == []


def test_an_incomplete_video_is_removed(tmp_path, run, monkeypatch):
    monkeypatch.setattr(video_module, "_count_frames", lambda path: 2)
    with pytest.raises(UserError, match="the video could not be written completely; free some space"):
        run(write_video(tmp_path / "clip.avi"))
    assert tree(tmp_path / "out") == ["manifest.json"]


def test_a_missing_checkpoint(tmp_path, photos):
    with pytest.raises(UserError, match=r"gone\.ckpt: the file cannot be read"):
        predict(Fake(), [photos], tmp_path / "out", checkpoint=tmp_path / "gone.ckpt")


def test_files_in_the_output_folder_are_no_sources(tmp_path, photos, run):
    out = photos / "out"
    with pytest.raises(RuntimeError, match="killed"):
        run(photos, out=out, model=Fake(fail_after=3))
    assert tree(out / "pictures")
    assert run(photos, out=out).merged
    assert len(json.loads((out / "predictions.json").read_text())) == 7
    with pytest.raises(UserError, match="all images are in"):
        run(out / "pictures", out=out)


def test_files_are_written_completely_or_not_at_all(tmp_path):
    target = tmp_path / "deep" / "a.txt"
    with atomic.atomic_write(target, tmp_path):
        pass
    assert tree(tmp_path) == []
    with atomic.atomic_write(target, tmp_path) as draft:
        draft.write_text("one")
        assert draft.suffix == ".txt" and not target.exists()
    with pytest.raises(ValueError, match="half"), atomic.atomic_write(target, tmp_path) as draft:
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
