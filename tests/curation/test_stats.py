"""Statistics of a data set, compared with counts by hand."""

import json
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from detect.curation.objects import cooccurrence, objects_of
from detect.curation.stats import print_statistics, statistics, stats
from detect.curation.stats_picture import coverage, draw_statistics
from detect.data.dataset import Dataset, Defect
from detect.data.masks import Polygons, encode
from detect.data.records import Record
from detect.errors import UserError


def record(boxes=(), labels=(), *, size=(100, 50), crowd=None, areas=None, difficult=None) -> Record:
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    none = np.zeros(len(boxes), bool)
    own = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1).astype(np.float64)
    return Record(
        1,
        Path("a.jpg"),
        *size,
        boxes,
        np.array(labels, np.int64),
        none if crowd is None else np.array(crowd),
        none if difficult is None else np.array(difficult),
        own if areas is None else np.array(areas, np.float64),
    )


def dataset(records=(), classes=("cat", "dog", "owl"), repaired=()) -> Dataset:
    return Dataset(Path("set"), "train", "coco", tuple(classes), tuple(range(len(classes))), tuple(records), repaired)


BY_HAND = dataset(
    [
        record([[0, 0, 20, 10], [50, 0, 100, 50], [0, 0, 100, 50]], [0, 1, 1], crowd=[False, False, True]),
        record([[0, 0, 20, 40], [0, 0, 10, 40]], [0, 0], size=(200, 400), areas=[1024, 9216], difficult=[True, False]),
        record(size=(100, 100)),
    ],
    repaired=(Defect("clipped", Path("a"), ""), Defect("clipped", Path("b"), "")),
)


def test_statistics_by_hand():
    found = statistics(BY_HAND)
    assert found["images"] == 3 and found["images_without_objects"] == 1
    assert found["objects"] == 4 and found["crowds"] == 1 and found["difficult"] == 1
    assert found["classes"] == 3 and found["classes_without_objects"] == 1
    assert (found["small"], found["medium"], found["large"]) == (1, 2, 1)  # areas 200, 2500, 1024, 9216
    assert found["image_width"] == pytest.approx(
        {"min": 100, "p5": 100, "median": 100, "p95": 190, "max": 200, "mean": 400 / 3}
    )
    assert found["image_aspect_ratio"]["median"] == 1 and found["image_aspect_ratio"]["min"] == 0.5
    assert found["objects_an_image"] == pytest.approx(
        {"min": 0, "p5": 0.2, "median": 2, "p95": 2, "max": 2, "mean": 4 / 3}
    )
    assert found["classes_an_image"]["mean"] == 1
    assert found["box_aspect_ratio"]["median"] == 0.75  # 2, 1, 0.5, 0.25
    assert found["box_size"]["max"] == 50 and found["box_width"]["mean"] == 25 and found["box_height"]["mean"] == 35
    assert found["box_share_of_image"]["max"] == 0.5
    assert found["per_class"] == {
        "cat": {"objects": 3, "images": 2, "crowds": 0},
        "dog": {"objects": 1, "images": 1, "crowds": 1},
        "owl": {"objects": 0, "images": 0, "crowds": 0},
    }
    assert found["images_with_both"] == [["cat", "dog", 1]]
    assert found["mended"] == {"clipped": 2}
    json.dumps(found, allow_nan=False)


def test_cooccurrence_by_hand():
    np.testing.assert_array_equal(cooccurrence(BY_HAND), [[2, 1, 0], [1, 1, 0], [0, 0, 0]])


@pytest.mark.parametrize("classes", [(), ("cat",)])
def test_nothing_at_all(classes):
    found = statistics(dataset(classes=classes))
    assert found["images"] == found["objects"] == found["small"] == 0
    assert found["image_width"] is found["box_size"] is None and found["images_with_both"] == []


def test_coverage_by_hand():
    """A box covers the left half of one image, and another box covers the centre of no cell."""
    halves = dataset([record([[0, 0, 50, 50]], [0]), record([[0, 0, 0.5, 0.5]], [0])])
    covered = coverage(objects_of(halves))
    cells = len(covered)
    np.testing.assert_array_equal(covered[:, : cells // 2], 0.5)
    np.testing.assert_array_equal(covered[:, cells // 2 :], 0)


def test_masks_by_hand():
    """A triangle covers half of its box, a bitmap a quarter; a crowd and a box without a mask do not count."""
    triangle = Polygons((np.array([[0, 0], [40, 0], [0, 20]], np.float64),))
    pixels = np.zeros((50, 100), np.uint8)
    pixels[:10, :10] = 1
    boxes = [[0, 0, 40, 20], [0, 0, 20, 20], [0, 0, 9, 9], [0, 0, 20, 20]]
    one = record(boxes, [0, 0, 0, 1], crowd=[False, False, False, True])
    found = statistics(dataset([replace(one, masks=(triangle, encode(pixels), None, encode(pixels))), record()]))
    assert found["masks"] == 2
    assert found["mask_share_of_box"]["min"] == 0.25
    assert found["mask_share_of_box"]["max"] == pytest.approx(0.5, abs=0.03)
    lines = printed({"train": found, "val": statistics(BY_HAND)})
    assert ["with", "mask", "2", "66.7%", "0", "0.0%"] in lines
    assert lines[[line[:2] for line in lines].index(["mask", "/"])][3] == "0.25"
    assert statistics(BY_HAND)["mask_share_of_box"] is None
    assert not [line for line in printed({"val": statistics(BY_HAND)}) if "mask" in line]


def printed(splits, width=80) -> list[list[str]]:
    console = Console(width=width, record=True, force_terminal=False)
    with console.capture() as captured:
        print_statistics(splits, console)
    return [line.split() for line in captured.get().splitlines()]


def test_splits_that_do_not_fit_are_in_further_tables():
    one = statistics(BY_HAND)
    lines = printed({f"a_long_name_of_a_split_{number}": one for number in range(4)})
    heads = [line for line in lines if line and line[0].startswith("a_long")]
    assert heads == [[f"a_long_name_of_a_split_{number}" for number in pair] for pair in ((0, 1), (2, 3))]
    assert lines.count(["images", "3", "3"]) == 2


def test_the_table():
    lines = printed({"train": statistics(BY_HAND), "val": statistics(dataset())})
    assert ["train", "val"] in lines and ["images", "3", "0"] in lines
    assert ["without", "object", "1", "33.3%", "0"] in lines
    assert ["in", "an", "image", "0", "2", "2", "–"] in lines
    assert ["small", "<", "32²", "1", "25.0%", "0"] in lines
    assert ["medium", "<", "96²", "2", "50.0%", "0"] in lines
    assert ["large", "≥", "96²", "1", "25.0%", "0"] in lines
    assert lines.index(["cat", "3", "75.0%", "0"]) < lines.index(["dog", "1", "25.0%", "0"])


def many() -> Dataset:
    rng = np.random.default_rng(0)
    names = [f"class {number}" for number in range(295)] + ["[red]x[/red]", "$\\frac$", "猫", "a\nb\x1b[31m", "x" * 200]
    records = []
    for _ in range(60):
        count = rng.integers(0, 20)
        corner = rng.uniform(0, 270, (count, 2))
        boxes = np.hstack([corner, corner + 10 ** rng.uniform(0, 2, (count, 2))])
        labels = np.minimum(rng.geometric(0.02, count) - 1, 299) if count % 2 else 299 - rng.integers(0, 8, count)
        records.append(record(boxes, labels, size=(500, int(rng.choice([375, 500])))))
    return dataset(records, names)


def test_three_hundred_classes_and_hostile_names():
    lines = printed({"train": statistics(many())})
    assert any(line[:3] == ["270", "more", "classes"] for line in lines)
    assert any("[red]x[/red]" in line for line in lines) and all("\x1b" not in word for line in lines for word in line)
    shown = sum(int(line[-2]) for line in lines[1 + lines.index(["objects", "of", "the", "class", "train"]) :])
    assert shown == statistics(many())["objects"]


@pytest.mark.parametrize(
    "given",
    [dataset(classes=()), dataset([record([[1, 1, 3, 4]], [0])], ["cat"]), many()],
    ids=["nothing", "one", "many"],
)
def test_the_picture(tmp_path, given):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_statistics(tmp_path / "picture.png", given)
    with Image.open(tmp_path / "picture.png") as image:
        assert image.size == (2400, 1500) and len(image.convert("L").getcolors()) > 20


def test_the_command(tmp_path, capsys):
    root = tmp_path / "set"
    (root / "annotations").mkdir(parents=True)
    Image.new("RGB", (40, 30)).save(root / "a.png")
    entry = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0}
    content = {
        "images": [{"id": 1, "file_name": "a.png"}],
        "annotations": [entry],
        "categories": [{"id": 1, "name": "cat"}],
    }
    for split in ("train", "val"):
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    found = stats(root, ["train"], tmp_path / "new" / "out", progress=False)
    assert "objects of the class" in capsys.readouterr().out
    written = json.loads((tmp_path / "new" / "out" / "stats.json").read_text())
    assert written == {"root": str(root), "splits": found} and list(found) == ["train"]
    assert {path.name for path in (tmp_path / "new" / "out").iterdir()} == {"stats.json", "train.png"}
    assert list(stats(root, progress=False)) == ["train", "val"]
    assert list(stats(root, ["validation"], progress=False)) == ["val"]
    with pytest.raises(UserError, match="the folder is not empty"):
        stats(root, out=tmp_path / "new" / "out", progress=False)
