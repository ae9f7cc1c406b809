"""Large COCO files, read entry by entry: the same as reading the whole file."""

import json
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detect.data.dataset import Dataset
from detect.data.formats import coco, coco_stream
from detect.data.formats.coco_stream import read_regular
from detect.data.masks import Polygons, encode
from detect.data.read import read
from detect.errors import UserError

RUNS = encode(np.pad(np.ones((5, 6), np.uint8), ((2, 13), (3, 21)))).segmentation()  # 20 × 30
BOX = {"bbox": [3, 2, 6, 5], "area": 30, "iscrowd": 0}


def document(images: int = 3) -> dict:
    """Return a file with polygons, runs, crowds and boxes without a mask, in no order of the images."""
    annotations = [
        {"id": 5, "image_id": 3, "category_id": 7, "segmentation": [[3, 2, 9, 2, 9, 7.5], [4, 3, 5, 3, 5, 4]], **BOX},
        {"id": 1, "image_id": 1, "category_id": 2, "segmentation": RUNS, **BOX, "iscrowd": 1},
        {"id": 9, "image_id": 3, "category_id": 2, "segmentation": [], **BOX, "area": 29.5},
        {"id": 4, "image_id": 1, "category_id": 7, **BOX},
        {"id": 2, "image_id": 3, "category_id": 7, **BOX, "bbox": [20.25, 10.5, 20, 8]},  # clipped
    ]
    names = [f"größe {number}.png" for number in range(1, images + 1)]
    return {
        "info": {"nested": [1, {"annotations": []}], "text": '"images": [{'},
        "annotations": annotations,
        "images": [
            {"id": number, "file_name": name, "width": 30, "height": 20, "url": "x" * 50}
            for number, name in enumerate(names, start=1)
        ],
        "licenses": [],
        "categories": [{"id": 7, "name": "dog"}, {"id": 2, "name": "cat", "supercategory": "animal"}],
    }


@pytest.fixture
def save(tmp_path):
    """Return a function that writes a document and its images."""

    def save(content: dict | str, **options) -> Path:
        text = content if isinstance(content, str) else json.dumps(content, **options)
        (tmp_path / "annotations").mkdir(exist_ok=True)
        (tmp_path / "annotations" / "instances_train.json").write_text(text, encoding="utf-8")
        (tmp_path / "train").mkdir(exist_ok=True)
        for number in range(1, 4):
            Image.new("RGB", (30, 20)).save(tmp_path / "train" / f"größe {number}.png")
        return tmp_path / "annotations" / "instances_train.json"

    return save


def both_ways(path: Path, monkeypatch, **options) -> tuple[Dataset, Dataset]:
    """Return the data set of a file read entry by entry, and as a whole."""
    monkeypatch.setattr(coco, "MIN_BYTES", 0)
    monkeypatch.setattr(coco, "load", lambda *_: pytest.fail("read as a whole"))
    in_columns = read(path.parents[1], "train", **options)
    monkeypatch.undo()
    monkeypatch.setattr(coco, "read_regular", lambda *_: pytest.fail("read entry by entry"))
    return in_columns, read(path.parents[1], "train", **options)


def assert_same(one: Dataset, other: Dataset) -> None:
    assert [getattr(one, field.name) for field in fields(one) if field.name != "records"] == [
        getattr(other, field.name) for field in fields(other) if field.name != "records"
    ]
    assert one.records.arrays().keys() == other.records.arrays().keys()
    for name, array in one.records.arrays().items():
        expected = other.records.arrays()[name]
        assert array.dtype == expected.dtype and np.array_equal(array, expected), name


@pytest.mark.parametrize("chunk", [1, 7, 64, 2**22])
@pytest.mark.parametrize("options", [{}, {"indent": 2}, {"ensure_ascii": False, "separators": (",", ":")}])
def test_both_ways_give_the_same(save, monkeypatch, chunk, options):
    monkeypatch.setattr(coco_stream, "_CHUNK", chunk)
    path = save(document(), **options)
    in_columns, whole = both_ways(path, monkeypatch)
    assert_same(in_columns, whole)
    assert [len(record.boxes) for record in whole.records] == [2, 0, 3]
    assert isinstance(in_columns.records[2].masks[0], Polygons)
    assert [defect.rule for defect in in_columns.repaired] == ["clipped"]


def test_photographs_both_ways_give_the_same(monkeypatch, request):
    import os

    root = Path(os.environ.get("DETECT_DATA", Path(__file__).parents[4] / "shared" / "data")) / "coco_mini"
    if not root.exists():
        pytest.skip("no photographs; name their folder in DETECT_DATA")
    monkeypatch.setattr(coco, "MIN_BYTES", 0)
    monkeypatch.setattr(coco, "load", lambda *_: pytest.fail("read as a whole"))
    in_columns = read(root, "val2017")
    monkeypatch.undo()
    monkeypatch.setattr(coco, "read_regular", lambda *_: None)
    assert_same(in_columns, read(root, "val2017"))


def test_classes_of_a_model_both_ways(save, monkeypatch):
    path = save(document())
    in_columns, whole = both_ways(path, monkeypatch, classes=["bird", "dog", "cat"])
    assert_same(in_columns, whole)
    assert whole.classes == ("bird", "dog", "cat")
    refusals = []
    for module, value in (("read_regular", lambda *_: None), ("MIN_BYTES", 0)):
        monkeypatch.setattr(coco, module, value)
        with pytest.raises(UserError) as caught:
            read(path.parents[1], "train", classes=["dog"])
        refusals.append(str(caught.value))
        monkeypatch.undo()
    assert refusals[0] == refusals[1] and "unknown-class" in refusals[0]


def change(**changes):
    """Return a function that changes the first annotation of a document."""

    def apply(content: dict) -> None:
        content["annotations"][0].update(changes)

    return apply


def drop(kind: str):
    return lambda content: content.pop(kind)


IRREGULAR = {
    "id of text": change(id="5"),
    "id twice": change(id=9),
    "huge id": change(id=2**70),
    "true as id": change(category_id=True),
    "unknown image": change(image_id=99),
    "unknown category": change(category_id=99),
    "box of three": change(bbox=[1, 2, 3]),
    "box of text": change(bbox=[1, 2, 3, "4"]),
    "box of nothing": change(bbox=None),
    "area of text": change(area="30"),
    "infinite area": change(area=float("inf")),
    "negative area": change(area=-1),
    "no crowd": change(iscrowd=None),
    "crowd of two": change(iscrowd=2),
    "polygon of four": change(segmentation=[[1, 2, 3, 4]]),
    "polygon of odd numbers": change(segmentation=[[1, 2, 3, 4, 5, 6, 7]]),
    "polygon of text": change(segmentation=[[1, 2, 3, 4, 5, "6"]]),
    "runs of another size": change(segmentation={"size": [20, 31], "counts": RUNS["counts"]}),
    "runs of nothing": change(segmentation={"counts": []}),
    "mask of text": change(segmentation="mask"),
    "no annotations": drop("annotations"),
    "no categories": drop("categories"),
    "image without id": lambda content: content["images"][0].pop("id"),
    "image id twice": lambda content: content["images"][0].update(id=2),
    "entry of text": lambda content: content["annotations"].append("text"),
    "categories of text": lambda content: content.update(categories="cat"),
}


@pytest.mark.parametrize("name", IRREGULAR)
def test_irregular_files_are_left_to_the_reader_of_whole_files(save, name):
    content = document()
    IRREGULAR[name](content)
    assert read_regular(save(content)) is None


@pytest.mark.parametrize("text", ["", "[]", "{", '{"images": [', '{"images": []} x', "{} {}", '{"a": 1, "a"}', "nul"])
def test_other_files_are_left_to_the_reader_of_whole_files(save, text):
    assert read_regular(save(text)) is None


def test_a_file_that_ends_early_is_left_to_the_reader_of_whole_files(save, monkeypatch):
    monkeypatch.setattr(coco_stream, "_CHUNK", 16)
    text = json.dumps(document())
    for length in range(0, len(text), 13):
        assert read_regular(save(text[:length])) is None
    assert read_regular(save(text)) is not None
