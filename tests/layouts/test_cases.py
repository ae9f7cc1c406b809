"""Inputs with a mistake or a peculiarity of their own: read as meant, or refused in one line before a run begins."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from detect.cli import main
from detect.curation.divide import divide
from detect.data.datamodule import DetectionData
from detect.data.options import DataOptions
from detect.data.read import read, splits
from detect.errors import UserError


@pytest.fixture
def refused(tmp_path, capsys):
    """Return a function that returns the line with which training refuses data, before there is a run's folder."""

    def train(root, *options):
        chosen = ("--data.train", "train", "--data.val", "val", "--data.test", "null", *options)
        words = ["-c", "bccd/faster_rcnn", "--data.root", root, *chosen]
        assert main(["train", *map(str, words), "--out", str(tmp_path / "run")]) == 2
        out, error = capsys.readouterr()
        assert not (tmp_path / "run").exists() and out == ""
        assert error.startswith("detect: error: ") and error.count("\n") == 1
        return error

    return train


def rules(dataset):
    return {defect.rule for defect in dataset.repaired}


@pytest.fixture
def coco_folder(layouts, tmp_path):
    """Return a function that writes a COCO data set, changes its documents, and returns what was drawn."""

    def write(change, layout="coco", root=tmp_path / "data", names=()):
        sets = layouts[layout].draw(root, names=names)
        for path in sorted(root.rglob("*.json")):
            document = json.loads(path.read_text())
            change(document)
            path.write_text(json.dumps(document))
        return sets

    return write


# --------------------------------------------------------------------------------------------------------------- yolo


def yolo_folder(layouts, root, lines, yaml):
    sets = layouts["yolo"].draw(root)
    for path in root.glob("labels/*/*.txt"):
        path.write_text(lines)
    (root / "data.yaml").write_text(f"train: images/train\nval: images/val\n{yaml}names: [red, green]\n")
    return sets


@pytest.mark.parametrize(
    ("shape", "points"),
    [
        ([2, 3], "0.45 0.45 2 0.55 0.55 2"),
        ([2, 2], "0.45 0.45 0.55 0.55"),
        ([1, 3], "0.5 0.5 2"),
        ([2, 3], "0 0 0 0.5 0.5 1"),
    ],
)
def test_the_box_of_a_line_with_key_points(layouts, tmp_path, shape, points):
    yolo_folder(layouts, tmp_path, f"0 0.5 0.5 0.2 0.2 {points}\n", f"kpt_shape: {shape}\n")
    for split in ("train", "val"):
        for record in read(tmp_path, split).records:
            np.testing.assert_allclose(record.boxes, [[48, 32, 72, 48]], atol=1e-4)


def test_key_points_without_kpt_shape(layouts, tmp_path, refused):
    yolo_folder(layouts, tmp_path / "data", "0 0.5 0.5 0.2 0.2 0.45 0.45 2 0.55 0.55 2\n", "")
    error = refused(tmp_path / "data")
    assert "keypoint-lines, first" in error and "data.yaml" in error and "kpt_shape: [2, 3]" in error


@pytest.mark.parametrize(
    "corners", ["0.4 0.4 0.6 0.4 0.6 0.6 0.4 0.6", "0.5 0.4 0.6 0.5 0.5 0.6 0.4 0.5", "0.4 0.4 0.6 0.5 0.5 0.6"]
)
def test_polygons_are_no_key_points(layouts, tmp_path, corners):
    yolo_folder(layouts, tmp_path, f"1 {corners}\n", "")
    np.testing.assert_allclose(read(tmp_path, "train").records[0].boxes, [[48, 32, 72, 48]], atol=1e-4)


def test_words_that_yaml_takes_for_other_values(layouts, tmp_path):
    names = ["no", "yes", "on", "off", "012", "1e3", "2024-01-01", "~", "null", "0x10", "1_000", ".5"]
    yolo_folder(layouts, tmp_path, "7 0.5 0.5 0.2 0.2\n", "")
    (tmp_path / "data.yaml").write_text(f"train: images/train\nval: images/val\nnames: [{', '.join(names)}]\n")
    assert list(read(tmp_path, "train").classes) == names
    (tmp_path / "data.yaml").write_text(
        "train: images/train\nnames:\n" + "".join(f"  {i}: {n}\n" for i, n in enumerate(names))
    )
    assert list(read(tmp_path, "train").classes) == names


@pytest.mark.parametrize("test", ["../test/images", "test/images", "/content/pets/test/images", "test.txt"])
def test_a_split_that_is_not_there(layouts, tmp_path, refused, drawn, found, test):
    root = tmp_path / "data"
    sets = layouts["yolo-roboflow"].draw(root)
    for path in sorted((root / "test").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    (root / "test").rmdir()
    (root / "data.yaml").write_text(
        f"train: ../train/images\nval: ../valid/images\ntest: {test}\nnames: [red, green]\n"
    )
    dataset = read(root, "train")
    assert splits(root) == ("train", "val") and found(dataset) == drawn(sets["train"])
    assert [defect.detail for defect in dataset.repaired] == [f"test names {test}, which does not exist"]
    assert "there is no split test; name one of train, val" in refused(root, "--data.test", "test")


# --------------------------------------------------------------------------------------------------------------- boxes

COUNT = 32
"""Images of a data set with a mistake: a few boxes prove nothing."""
NAMES = [f"im{number}.jpg" for number in range(COUNT)]


def on_boxes(change):
    def on_document(document):
        for annotation in document["annotations"]:
            annotation["bbox"] = change(*annotation["bbox"])

    return on_document


MISTAKES = {
    "corners-for-sizes": lambda x, y, w, h: [x, y, x + w, y + h],
    "fractions-for-pixels": lambda x, y, w, h: [x / 120, y / 80, w / 120, h / 80],
    "swapped-axes": lambda x, y, w, h: [y, x, h, w],
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_of_all_boxes(coco_folder, tmp_path, refused, drawn, found, capsys, mistake):
    sets = coco_folder(on_boxes(MISTAKES[mistake]), names=NAMES)
    error = refused(tmp_path / "data")
    assert f"1 × {mistake}, first" in error and "instances_train.json" in error and "--fix OUT" in error
    assert main(["data", "check", str(tmp_path / "data"), "--fix", str(tmp_path / "fixed")]) == 1
    assert "no errors remain" in capsys.readouterr().out
    for split, pictures in sets.items():
        assert found(read(tmp_path / "fixed", split)) == drawn(pictures)


def test_pixels_for_fractions(layouts, tmp_path, refused, drawn, found):
    sets = layouts["yolo"].draw(tmp_path / "data", names=NAMES)
    for path in (tmp_path / "data").glob("labels/*/*.txt"):
        rows = [line.split() for line in path.read_text().splitlines()]
        pixels = [[float(x) * side for x, side in zip(row[1:], (120, 80, 120, 80), strict=True)] for row in rows]
        lines = [
            f"{row[0]} {' '.join(f'{number:g}' for number in box)}\n" for row, box in zip(rows, pixels, strict=True)
        ]
        path.write_text("".join(lines))
    assert "1 × pixels-for-fractions, first" in refused(tmp_path / "data")
    assert main(["data", "check", str(tmp_path / "data"), "--fix", str(tmp_path / "fixed")]) == 1
    assert found(read(tmp_path / "fixed", "train")) == drawn(sets["train"])


def test_images_that_were_scaled(coco_folder, tmp_path, refused):
    coco_folder(lambda document: None, names=NAMES)
    for path in (tmp_path / "data").rglob("*.jpg"):
        with Image.open(path) as image:
            image.resize((48, 32)).save(path)
    error = refused(tmp_path / "data")
    assert "1 × scaled-images, first" in error and "0.4 × as wide" in error


def no_bbox(document):
    """Replace boxes by a polygon, a run-length encoding, and in the last annotation by an empty list."""
    for number, annotation in enumerate(document["annotations"]):
        x, y, w, h = annotation.pop("bbox")
        inside = [run for column in range(w) for run in (80 - h if column else x * 80 + y, h)]
        runs = {"size": [80, 120], "counts": [*inside, 80 * 120 - sum(inside)]}
        annotation["segmentation"] = runs if number % 2 else [[x, y, x + w, y, x + w, y + h, x, y + h]]
    document["annotations"][-1] |= {"bbox": []}
    del document["annotations"][-1]["segmentation"]


def test_annotations_without_boxes(coco_folder, tmp_path, drawn, found):
    (picture, other) = coco_folder(no_bbox)["train"]
    dataset = read(tmp_path / "data", "train")
    assert found(dataset) == drawn([picture, replace(other, boxes=other.boxes[:1])])
    assert rules(dataset) == {"implied-box", "zero-area"}


def test_too_many_boxes_for_the_padding(coco_folder, tmp_path, refused):
    def crowd(document):
        document["annotations"] *= 300 if document["images"][0]["file_name"] == "im1.jpg" else 1

    coco_folder(crowd)
    error = refused(tmp_path / "data", "--data.max_objects", "500")
    assert "val/im1.jpg: 600 boxes, but data.max_objects is 500 (2 images of the split val have too many)" in error


# ------------------------------------------------------------------------------------------------------- names and ids

SPELLINGS = {
    "backslash": "train\\{}",
    "windows": "C:\\Users\\me\\Pets\\train\\{}",
    "linux": "/home/somebody/data/train/{}",
    "address": "https://example.com/pets/train/{}",
    "upper": "TRAIN/{}",
    "dots": "../train/{}",
    "no-folder": "/{}",
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_names_as_other_systems_write_them(coco_folder, tmp_path, drawn, found, spelling):
    def spell(document):
        for image in document["images"]:
            image["file_name"] = SPELLINGS[spelling].format(image["file_name"].upper())

    sets = coco_folder(spell, names=["im 0.jpg", "x.jpg", "im 1.jpg", "y.jpg"])
    dataset = read(tmp_path / "data", "train")
    assert found(dataset) == drawn(sets["train"]) and rules(dataset) == {"foreign-name"} and len(dataset.repaired) == 2


def test_a_name_that_two_images_have(coco_folder, tmp_path, refused):
    def spell(document):
        for image in document["images"]:
            image["file_name"] = "D:\\photos\\" + image["file_name"].rpartition("/")[2]

    coco_folder(spell, "coco-stems", names=["a/1.jpg", "a/2.jpg", "b/1.jpg", "b/2.jpg"])
    assert "2 × missing-image, first" in refused(tmp_path / "data")


IDS = {
    "words": lambda id: f"img_{id}",
    "digits": str,
    "leading-zeros": lambda id: f"{id:06}",
    "floats": float,
    "negative": lambda id: -id,
    "zero": lambda id: id - 1,
    "huge": lambda id: id + 2**127,
}


@pytest.mark.parametrize("kind", ["images", "categories"])
@pytest.mark.parametrize("ids", IDS)
def test_ids_are_only_keys(coco_folder, tmp_path, drawn, found, kind, ids):
    def number(document):
        for entry in document[kind]:
            entry["id"] = IDS[ids](entry["id"])
        key = {"images": "image_id", "categories": "category_id"}[kind]
        for annotation in document["annotations"]:
            annotation[key] = IDS[ids](annotation[key])

    sets = coco_folder(number)
    dataset = read(tmp_path / "data", "train")
    assert found(dataset) == drawn(sets["train"])
    assert rules(dataset) == (set() if ids in ("negative", "zero") else {"id-not-number"})
    assert len({record.id for record in dataset.records}) == 2


def test_one_image_twice(coco_folder, tmp_path, refused):
    coco_folder(lambda document: document["images"].append({**document["images"][0], "id": 9}))
    assert "the images 1 and 9 are both im0.jpg (list every image once" in refused(tmp_path / "data")


# ----------------------------------------------------------------------------------------------- files without content

EMPTY = {
    "coco": "it is not JSON",
    "voc-labelimg": "it is not XML",
    "labelme": "it is not JSON",
    "supervisely": "it is not JSON",
}


@pytest.mark.parametrize("name", EMPTY)
def test_an_empty_file_that_needs_content(layouts, tmp_path, name):
    layouts[name].draw(tmp_path)
    path = max(path for suffix in ("json", "xml") for path in tmp_path.rglob(f"*.{suffix}") if path.name != "meta.json")
    path.write_bytes(b"")
    message = rf"broken-file, first .*{path.name}: {EMPTY[name]}.*correct the file"
    with pytest.raises(UserError, match=message):
        for split in splits(tmp_path):
            read(tmp_path, split)


def test_an_empty_label_file_is_an_image_without_objects(layouts, tmp_path, found):
    (first, second) = layouts["yolo"].draw(tmp_path)["train"]
    (tmp_path / "labels" / "train" / f"{first.stem}.txt").write_bytes(b"\xef\xbb\xbf\r\n")
    assert found(read(tmp_path, "train")) == {first.content: [], second.content: sorted(second.boxes)}


def test_annotations_without_images(layout, tmp_path, found, drawn):
    sets = layout.draw(tmp_path)
    split, (first, second) = next(iter(sets.items()))
    (path,) = [path for path in tmp_path.rglob("*.jpg") if path.read_bytes() == first.content]
    path.unlink()
    if layout.format != "yolo":  # its images, not its labels, are listed
        with pytest.raises(UserError, match=rf"missing-image, first .*{first.stem}.*skip_unreadable"):
            read(tmp_path, split)
    assert found(read(tmp_path, split, skip_unreadable=True)) == drawn([second])


# --------------------------------------------------------------------------------------------------- several data sets


def test_three_data_sets_with_their_own_classes(layouts, tmp_path, found, drawn):
    names = {"voc": ("red", "green"), "coco": ("green", "blue"), "csv-retinanet": ("blue", "red")}
    sets = [
        layouts[name].draw(tmp_path / name, classes, seed=10 * place)
        for place, (name, classes) in enumerate(names.items())
    ]
    data = DetectionData(DataOptions(root=tuple(tmp_path / name for name in names), workers=0))
    assert set(data.classes) == {"red", "green", "blue"}
    assert found(data.train) == drawn([picture for one in sets for picture in one["train"]])
    assert found(data.val) == drawn([picture for one in sets for picture in one["val"]])
    assert len({record.id for record in data.train.records}) == 6


def test_two_years_of_voc(layouts, tmp_path, found, drawn, refused):
    old = layouts["voc"].draw(tmp_path / "data" / "VOC2007")
    new = layouts["voc-devkit"].draw(tmp_path / "new", seed=10)
    (tmp_path / "new" / "VOCdevkit" / "VOC2007").rename(tmp_path / "data" / "VOC2012")
    roots = (tmp_path / "data" / "VOC2007", tmp_path / "data" / "VOC2012")
    data = DetectionData(DataOptions(root=roots, workers=0))
    assert found(data.train) == drawn([*old["train"], *new["train"]])
    assert found(data.val) == drawn([*old["val"], *new["val"]])
    assert "it contains VOC2007 and VOC2012; give one of these folders" in refused(tmp_path / "data")


# ------------------------------------------------------------------------------------------------------ one data set


def test_a_data_set_that_is_not_divided(layout, tmp_path, found, drawn):
    if len(layout.splits) > 1:
        pytest.skip("it has splits")
    sets = layout.draw(tmp_path, names=[f"im{number}.jpg" for number in range(10)])
    options = DataOptions(root=tmp_path, val=0.2, test=0.2, workers=0)
    data = DetectionData(options, seed=1, divide=divide)
    parts = [found(data.split(name)) for name in ("train", "val", "test")]
    assert [len(part) for part in parts] == [6, 2, 2]
    assert parts[0] | parts[1] | parts[2] == drawn(next(iter(sets.values())))
    assert all({name for boxes in part.values() for name, *_ in boxes} == {"red", "green"} for part in parts)
    again = DetectionData(options, seed=1, divide=divide)
    assert [found(again.split(name)) for name in ("train", "val", "test")] == parts


# -------------------------------------------------------------------------------------------------- two commands agree


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "byte-order-mark"])
@pytest.mark.parametrize("named", [True, False])
def test_a_report_on_results_whose_ids_are_of_another_order(coco_folder, tmp_path, capsys, mark, named):
    """`detect predict` numbers the images by name, and the classes from 1, and writes both into images.json."""

    def shuffle(document):
        for entry in document["images"]:
            entry["id"] = 7 - entry["id"]
        for entry in document["categories"]:
            entry["id"] = 3 - entry["id"]
        for annotation in document["annotations"]:
            annotation |= {"image_id": 7 - annotation["image_id"], "category_id": 3 - annotation["category_id"]}

    coco_folder(shuffle)
    truth = tmp_path / "data" / "annotations" / "instances_val.json"
    document = json.loads(truth.read_text())
    results = [
        {
            "image_id": 7 - entry["image_id"],
            "category_id": 3 - entry["category_id"],
            "bbox": entry["bbox"],
            "score": 0.9,
        }
        for entry in document["annotations"]
    ]
    images = [
        {"id": 7 - image["id"], "file_name": f"/elsewhere/val/{image['file_name']}"} for image in document["images"]
    ]
    categories = [{"id": 1, "name": "red"}, {"id": 2, "name": "green"}]
    for path in tmp_path.rglob("*.json"):
        path.write_bytes(mark + path.read_bytes())
    folder = tmp_path / "predicted"
    folder.mkdir()
    (folder / "predictions.json").write_bytes(mark + json.dumps(results).encode())
    if named:
        document = {"images": images, "annotations": [], "categories": categories}
        (folder / "images.json").write_bytes(mark + json.dumps(document).encode())
    words = [
        "report",
        "--ground-truth",
        truth,
        "--predictions",
        folder / "predictions.json",
        "--out",
        tmp_path / "report",
    ]
    code = main([str(word) for word in words])
    if named:
        metrics = json.loads((tmp_path / "report" / "metrics.json").read_text())
        assert code == 0 and metrics["AP"] == 1
    else:
        assert code == 2 and "images.json" in capsys.readouterr().err and not (tmp_path / "report").exists()
