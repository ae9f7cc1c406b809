import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detect.cli import main
from detect.curation.propose import find_images, propose
from detect.curation.recall import store_recall
from detect.curation.shapes import make_shapes
from detect.data.read import read
from detect.errors import UserError
from detect.proposals.selective_search import selective_search
from detect.proposals.store import ProposalStore, digest


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shapes"
    return make_shapes(folder, images={"train": 3, "val": 2}, size=(64, 96), progress=False)


def stored(path: Path) -> dict[tuple[str, bytes], np.ndarray]:
    """Return the content of a store by name and digest of the image; two splits may have a name in common."""
    with closing(ProposalStore(path)) as store:
        rows = store._database.execute("SELECT name, image FROM proposals").fetchall()
        return {(name, image): store.boxes(image) for name, image in rows}


def test_sources_are_data_sets_folders_files_and_patterns(shapes, tmp_path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    files = [tmp_path / "deep" / "b.JPG", tmp_path / "deep" / "er" / "a.png"]
    for path in (*files, tmp_path / "deep" / "notes.txt"):
        path.touch()
    assert find_images([str(tmp_path / "deep")]) == files
    assert find_images([str(files[1]), str(tmp_path / "deep")]) == [files[1], files[0]]
    assert find_images([str(tmp_path / "**" / "*.png")]) == [files[1]]
    listed = {record.path for split in ("train", "val") for record in read(shapes, split, progress=False).records}
    (shapes / "stray.jpg").touch()
    assert set(find_images([str(shapes)])) == listed  # a data set has the images that its annotations list
    (tmp_path / "empty").mkdir()
    for nothing in (tmp_path / "gone.jpg", tmp_path / "empty", tmp_path / "*.bmp"):
        with pytest.raises(UserError, match="no images; give a data set, a folder"):
            find_images([str(nothing)])


def test_the_images_of_some_splits(shapes, tmp_path, capsys):
    of_split = {name: [record.path for record in read(shapes, name).records] for name in ("train", "val")}
    for name, paths in of_split.items():
        assert find_images([str(shapes)], [name]) == paths
    assert set(find_images([str(shapes)], ["val", "train"])) == {*of_split["train"], *of_split["val"]}
    with pytest.raises(UserError, match="there is no split none; name one of train, val"):
        find_images([str(shapes)], ["none"])
    (tmp_path / "photos").mkdir()
    with pytest.raises(UserError, match=r"photos: a folder of images without splits; leave out --split"):
        find_images([str(tmp_path / "photos")], ["val"])
    words = ["propose", str(shapes), "--split", "val", "--mode", "single", "--out", str(tmp_path / "store")]
    assert main([*words, "--processes", "1"]) == 0 and ": 2 images added" in capsys.readouterr().out


def test_every_image_has_its_proposals_whatever_the_processes(shapes, tmp_path):
    for processes in (1, 2):
        outcome = propose([str(shapes)], tmp_path / f"{processes}", processes=processes)
        assert (outcome.added, outcome.present, outcome.unreadable) == (5, 0, [])
    one, two = (stored(tmp_path / name) for name in "12")
    assert len(one) == 5
    assert one.keys() == two.keys() and all(np.array_equal(one[image], two[image]) for image in one)
    record = read(shapes, "val", progress=False).records[0]
    with Image.open(record.path) as image, closing(ProposalStore(tmp_path / "1")) as store:
        expected = selective_search(np.asarray(image.convert("RGB")), "fast")
        assert len(expected) > 10 and len(store.boxes(digest(record.path))) > 10


def test_what_is_there_is_not_searched_again(shapes, tmp_path):
    photos = shutil.copytree(shapes / "images" / "train", tmp_path / "photos")
    assert propose([str(photos)], tmp_path / "store", processes=1).added == 3
    shutil.copy(photos / "000000.jpg", photos / "copy.jpg")
    shutil.copy(shapes / "images" / "val" / "000000.jpg", photos / "new.jpg")
    outcome = propose([str(photos)], tmp_path / "store", processes=1)
    assert (outcome.added, outcome.present) == (1, 4)
    with pytest.raises(UserError, match="mode fast instead of single"):
        propose([str(photos)], tmp_path / "store", mode="single")


def test_unreadable_images_are_named_and_the_others_done(shapes, tmp_path, capsys):
    photos = shutil.copytree(shapes / "images" / "train", tmp_path / "photos")
    content = (photos / "000001.jpg").read_bytes()
    (photos / "000001.jpg").write_bytes(content[:-200])
    (photos / "z.png").write_bytes(b"no image")
    assert main(["propose", str(photos), "--out", str(tmp_path / "store"), "--processes", "1"]) == 3
    out, error = capsys.readouterr()
    assert out.startswith(f"{tmp_path / 'store'}: 2 images added, 0 already present")
    lines = error.splitlines()
    assert len(lines) == 2 and all(line.startswith(f"detect: skipped: {photos}") for line in lines)
    assert "000001.jpg" in lines[0] and "z.png" in lines[1]
    assert {name for name, _ in stored(tmp_path / "store")} == {"000000.jpg", "000002.jpg"}


def test_after_a_kill_it_goes_on_and_ends_as_if_nothing_was(shapes, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    noise = np.random.default_rng(0)
    for number in range(12):
        Image.fromarray(noise.integers(0, 256, (96, 128, 3), np.uint8)).save(photos / f"{number}.png")
    arguments = ["propose", str(photos), "--out", str(tmp_path / "killed"), "--processes", "1"]
    command = subprocess.Popen([sys.executable, "-m", "detect", *arguments], start_new_session=True)
    limit = time.monotonic() + 90
    while time.monotonic() < limit:
        if (tmp_path / "killed").exists() and (tmp_path / "killed").stat().st_size > 20_000:
            break
        time.sleep(0.01)
    os.killpg(command.pid, signal.SIGKILL)
    command.wait()
    before = len(stored(tmp_path / "killed"))
    assert before
    outcome = propose([str(photos)], tmp_path / "killed", processes=1)
    assert outcome.present == before and outcome.added == 12 - before
    propose([str(photos)], tmp_path / "whole", processes=1)
    one, other = stored(tmp_path / "killed"), stored(tmp_path / "whole")
    assert one.keys() == other.keys() and all(np.array_equal(one[image], other[image]) for image in one)


def test_recall_is_printed_and_drawn(shapes, tmp_path, capsys):
    store = tmp_path / "store"
    assert main(["propose", str(shapes), "--out", str(store), "--recall", "val", "--processes", "1"]) == 0
    printed = capsys.readouterr().out
    assert "recall@0.7" in printed and "MABO" in printed and "ABO@10000" in printed
    with Image.open(tmp_path / "store.val.png") as picture:
        assert picture.size == (1500, 600)


def test_what_is_wrong_with_the_truths_is_told_before_the_work(shapes, tmp_path, capsys):
    store = tmp_path / "store"
    for sources, split, message in (([shapes], "tset", "no split tset"), ([shapes, shapes], "val", "only source")):
        assert main(["propose", *map(str, sources), "--out", str(store), "--recall", split]) == 2
        assert message in capsys.readouterr().err and not store.exists()


def test_truths_as_proposals_have_full_recall(shapes, tmp_path):
    dataset = read(shapes, "val", progress=False)
    with closing(ProposalStore(tmp_path / "store", {})) as store:
        with pytest.raises(UserError, match="no proposals for"):
            store_recall(store, dataset)
        for record in dataset.records:
            store.add(digest(record.path), record.path.name, record.boxes.round())
        recall = store_recall(store, dataset)
    assert recall.recall(0.7) == 1.0 and recall.mabo() > 0.9
    assert recall.recall(0.7, 0) == 1.0  # ten proposals are enough for a few objects


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--out: name the file of the store"),
        (["--ckpt", "a.ckpt"], "--ckpt: the recall of an RPN needs the split"),
        (["--out", "store", "--processes", "-2"], "--processes: -2; give 1 or more"),
        (["--out", "no folder/store"], "unable to open database file; choose another file with --out"),
    ],
)
def test_mistakes(shapes, capsys, arguments, message):
    assert main(["propose", str(shapes), *arguments]) == 2
    assert message in capsys.readouterr().err
