"""Splits of several data folders, parts of a divided split, and chosen classes."""

import json
from pathlib import Path

import pytest
from PIL import Image

from detect.data.datamodule import DetectionData
from detect.data.division import Division, beside_run, division_json, read_division
from detect.data.options import DataOptions
from detect.data.splits import Splits
from detect.errors import UserError

HALVES = Division("train", 0, {"val": 0.5}, ({"train": ("train/1.png", "train/2.png"), "val": ("train/3.png",)},))


def save_coco(root: Path, classes=("cat", "dog"), **images: dict[int, list[str]]) -> Path:
    """Write a COCO data set: for each split the classes of each image's boxes, by image id."""
    (root / "annotations").mkdir(parents=True)
    categories = [{"id": id, "name": name} for id, name in enumerate(classes, start=1)]
    for split, content in images.items():
        (root / split).mkdir(exist_ok=True)
        boxes = [(image, name) for image, names in content.items() for name in names]
        annotations = [
            {"id": id, "image_id": image, "category_id": 1 + classes.index(name), "bbox": [1, 2, 3, 4], "area": 12,
             "iscrowd": 0}
            for id, (image, name) in enumerate(boxes, start=1)
        ]  # fmt: skip
        for id in content:
            Image.new("RGB", (20, 10), (id, len(root.name), sum(root.name.encode()) % 256)).save(
                root / split / f"{id}.png"
            )
        entries = [{"id": id, "file_name": f"{id}.png", "width": 20, "height": 10} for id in content]
        document = {"images": entries, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(document))
    return root


@pytest.fixture
def old(tmp_path) -> Path:
    return save_coco(tmp_path / "old", train={1: ["cat"], 2: ["dog"], 3: ["cat", "dog"]}, val={4: ["dog"]})


@pytest.fixture
def photos(tmp_path) -> Path:
    return save_coco(tmp_path / "photos", ("ant", "cat"), all={1: ["ant"], 7: ["cat"]})


def ids(dataset):
    return [record.id for record in dataset.records]


def named(dataset):
    return [[dataset.classes[label] for label in record.labels] for record in dataset.records]


def made(*_):
    return HALVES


# ---- several folders -------------------------------------------------------------------------------------------------


def test_new_photographs_beside_old(old, photos):
    data = DetectionData(DataOptions(root=(old, photos)))
    assert data.classes == ("ant", "cat", "dog")
    assert named(data.train) == [["cat"], ["dog"], ["cat", "dog"], ["ant"], ["cat"]]
    assert ids(data.train) == [1, 2, 3, 4, 5] and data.train.split == "train + all"
    assert named(data.val) == [["dog"]] and data.val.classes == data.classes
    (absent,) = data.val.repaired
    assert (absent.rule, absent.path, absent.detail) == ("absent-split", photos, "there is no split val")


def test_validation_images_that_another_folder_has_for_training(old, tmp_path):
    other = save_coco(tmp_path / "other", train={1: ["cat"], 5: ["dog"]}, val={2: ["dog"]})
    (other / "train" / "5.png").write_bytes((old / "val" / "4.png").read_bytes())
    splits = Splits(DataOptions(root=(old, other)))
    assert len(splits.read("train")) == 5
    (leak,) = splits.read("val").repaired
    assert (leak.rule, leak.path) == ("leaked-image", old / "val" / "4.png")
    assert leak.detail == f"the same image as {other / 'train' / '5.png'}" and len(splits.read("val")) == 2
    assert Splits(DataOptions(root=(old, other)), ("cat", "dog")).read("val").repaired == ()  # training is not read


def test_one_folder_in_two_spellings(old, monkeypatch):
    monkeypatch.chdir(old.parent)
    data = DetectionData(DataOptions(root=("old", "./old", old)))
    assert ids(data.train) == [1, 2, 3] and data.train.folders == (Path("old"),) and not data.train.repaired


def test_lists_of_splits(old, photos):
    splits = Splits(DataOptions(root=(old, photos), train=("train", "val", "all"), val=None))
    assert named(splits.read("train + val + all")) == [["cat"], ["dog"], ["cat", "dog"], ["dog"], ["ant"], ["cat"]]
    assert DataOptions(train=["train"]).train == "train" and DataOptions(root=["x"]).root == Path("x")
    assert named(Splits(DataOptions(root=old)).read("val + train"))[0] == ["dog"]


@pytest.mark.parametrize(
    ("options", "split", "message"),
    [
        ({"train": "learn"}, "learn", r"old and \S*photos: there is no split learn; name one of train, val, all"),
        ({"train": "val"}, "val", r"photos: there is no split val, only all; name splits of every folder, for example "
                                  r"--data.train \[val, all\], or leave the folder out$"),
        ({}, "test", "there is no split test; name one of train, val, all$"),
    ],
)  # fmt: skip
def test_splits_that_a_folder_lacks(old, photos, options, split, message):
    with pytest.raises(UserError, match=message):
        Splits(DataOptions(root=(old, photos), **options)).read(split)


def test_the_only_split_serves_for_training(photos, tmp_path):
    assert Splits(DataOptions(root=photos)).read("train").split == "all"
    with pytest.raises(UserError, match="there is no split learn; name one of all"):
        Splits(DataOptions(root=photos, train="learn")).read("learn")
    with pytest.raises(UserError, match="there is no split train; name one of val"):
        Splits(DataOptions(root=save_coco(tmp_path / "x", val={1: []}))).read("train")


def test_without_validation_split_the_remedy_is_to_divide(photos):
    data = DetectionData(DataOptions(root=photos), divide=made)
    remedy = "hold out a part of the training split with --data.val 0.2, name one of all, or null for none"
    with pytest.raises(UserError, match=f"photos: there is no split val; {remedy}$"):
        _ = data.val
    with pytest.raises(UserError, match=r"photos: there is no split val; name one of all$"):
        DetectionData(DataOptions(root=photos), classes=("ant", "cat")).split("val")


# ---- classes ---------------------------------------------------------------------------------------------------------


def test_some_classes(old):
    data = DetectionData(DataOptions(root=old, classes=("dog",)))
    assert data.classes == ("dog",) and data.train.category_ids == (2,)
    assert named(data.train) == [[], ["dog"], ["dog"]] and named(data.val) == [["dog"]]
    with pytest.raises(UserError, match=r"^classes: \S*old has no class Dogs; did you mean dog\?$"):
        _ = DetectionData(DataOptions(root=old, classes=("cat", "Dogs"))).train


def test_some_classes_of_a_model(old):
    """Boxes of classes that the model does not know are an error, unless other classes are chosen."""
    splits = Splits(DataOptions(root=old, classes=("dog",)), classes=("eel", "dog"))
    dataset = splits.read("train")
    assert dataset.classes == ("eel", "dog") and [record.labels.tolist() for record in dataset.records] == [
        [],
        [1],
        [1],
    ]
    with pytest.raises(UserError, match="unknown-class"):
        Splits(DataOptions(root=old), classes=("eel", "dog")).read("train")
    with pytest.raises(UserError, match=r"^classes: the model has no class cat; its classes are eel, dog$"):
        Splits(DataOptions(root=old, classes=("cat",)), classes=("eel", "dog"))


# ---- parts -----------------------------------------------------------------------------------------------------------


def test_parts_of_a_division(old):
    data = DetectionData(DataOptions(root=old, val=0.5), divide=made)
    assert (ids(data.train), ids(data.val)) == ([1, 2], [3])
    assert data.train.split == "train" and data.val.split == "val" and data.val.is_part
    assert data.classes == ("cat", "dog") and data.split("val") is data.val
    whole = DetectionData(DataOptions(root=old, val=0.5, division=None), classes=data.classes)
    assert ids(whole.split("val")) == [4], "without a division the name is that of a split"


def test_the_division_is_made_from_all_folders_by_the_seed(old, photos):
    seen = []

    def divide(datasets, fractions, seed):
        seen.append(([dataset.root for dataset in datasets], dict(fractions), seed))
        parts = {"train": ("train/1.png",), "val": ("train/2.png", "train/3.png")}, {"train": (), "val": ("all/1.png",)}
        return Division("train + all", seed, dict(fractions), parts)

    data = DetectionData(DataOptions(root=(old, photos), val=0.2, test=0.1), seed=5, divide=divide)
    assert named(data.val) == [["dog"], ["cat", "dog"], ["ant"]] and ids(data.val) == [2, 3, 4]
    assert ids(data.train) == [1]
    assert seen == [([old, photos], {"val": 0.2, "test": 0.1}, 5)]
    (undivided,) = data.train.repaired
    assert undivided.rule == "undivided-image" and undivided.path == photos / "all" / "7.png"


def written(folder: Path, division=HALVES) -> Path:
    file = folder / "division.json"
    file.write_text(division_json(Division(**{**vars_of(division), "roots": ("x",) * len(division.parts)})))
    return file


def vars_of(division: Division) -> dict:
    return {name: getattr(division, name) for name in division.__dataclass_fields__}


def test_a_division_is_read_from_its_file(old, tmp_path):
    file = written(tmp_path)
    assert read_division(file) == HALVES
    data = DetectionData(DataOptions(root=old, val=0.5, division=file), divide=lambda *_: pytest.fail("divided anew"))
    assert ids(data.val) == [3] and data.division.lines() == ["split train divided with seed 0: train 2, val 1 images"]


def test_divisions_that_do_not_fit(old, photos, tmp_path):
    file = written(tmp_path)

    def read(root, val=0.5, division=file):
        return Splits(DataOptions(root=root, val=val, division=division), ("ant", "cat", "dog")).read("val")

    where = f"^{file}: "
    with pytest.raises(
        UserError, match=where + r"it divides with val 0.5, not val 0.2; give the same fractions, or begin"
    ):
        read(old, 0.2)
    with pytest.raises(
        UserError, match=where + r"it divides 1 data folders, and data.root has 2; give the data that was"
    ):
        read((old, photos))
    with pytest.raises(
        UserError, match=where + r"1 images of the part val are not in \S*photos, split all, first train/3"
    ):
        read(photos)
    with pytest.raises(UserError, match=r"none.json: No such file or directory: the division of the data; restore it"):
        read(old, division=tmp_path / "none.json")
    for content in ("{", "[]", '{"split": 1}', json.dumps({"split": "a", "seed": 0, "fractions": {"val": "x"}})):
        file.write_text(content)
        with pytest.raises(UserError, match=where + "not the division of a training split; restore it, or give"):
            read(old)


def test_the_division_of_a_moved_run(tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    recorded, file = tmp_path / "before" / "division.json", written(tmp_path / "run")
    for path in ("run/config.yaml", "run/checkpoints/best.ckpt", "run/eval/metrics.json"):
        assert beside_run(recorded, tmp_path / path) == file
    assert beside_run(recorded, tmp_path / "best.ckpt") == recorded and beside_run(None, file) is None


# ---- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val": 1}, "give a fraction of the training split between 0 and 1, such as 0.2, not 1"),
        ({"val": 0.0}, "not 0.0"),
        ({"test": True}, "give the name of a split or a list of names, not True"),
        ({"train": 0.2}, "give the name of a split or a list of names, not 0.2"),
        ({"train": []}, "give the name of a split"),
        ({"root": []}, r"give a data folder or a list of data folders, not \[\]"),
        ({"root": 3}, "give a data folder"),
        ({"val": 0.5, "test": 0.5}, "val and test are the whole training split"),
        ({"val": 0.5, "test": "val"}, "test names val, a part of the training split; give it another split, or null"),
        ({"classes": []}, "at least 1 item"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        DataOptions(**options)


def test_the_names_of_the_splits():
    options = DataOptions(train=("a", "b"), val=0.2)
    assert [options.split_name(part) for part in ("train", "val", "test")] == ["a + b", "val", None]
    assert options.final == "val" and options.fractions == {"val": 0.2}
    assert DataOptions(val=None, test=0.1).final == "test" and DataOptions(val=None).final is None
