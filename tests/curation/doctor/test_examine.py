"""Data sets with one planted defect of each kind: all are found, with file, location and advice."""

import json
import os
import re
import struct
import zlib
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from detect.curation.doctor.diagnosis import CHECKS
from detect.curation.doctor.examine import examine
from detect.curation.doctor.repair.copy import LOG, write_repaired_copy
from detect.data.read import read
from detect.data.transforms import Resize
from detect.errors import UserError

DATA = Path(os.environ.get("DETECT_DATA", Path(__file__).parents[3].parent / "shared" / "data"))
SIZE = (96, 64)


def picture(seed, size=SIZE):
    """Return an RGB image of soft blobs, different for each seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC)


def save(path, seed, size=SIZE, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(seed, size)).save(path, **options)


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def rules(report):
    return Counter(finding.rule for finding in report.findings)


def places(report, rule):
    """Return file and location of each finding of a rule."""
    return [(finding.path.name, finding.place) for finding in report.findings if finding.rule == rule]


def report_of(root, **options):
    return examine(root, progress=False, workers=1, **options)


def huge_png():
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


# ----------------------------------------------------------------------------------------------------------------- COCO


class Coco:
    """Clean data set in which every image has one box of each class."""

    def __init__(self, root):
        self.root, self.seed, self.next = root, 0, {"train": 1, "val": 1}
        self.documents = {
            split: {
                "images": [],
                "annotations": [],
                "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
            }
            for split in self.next
        }
        for name in ("a", "b", "c"):
            self.add("train", f"{name}.png")
        for name in ("d", "e"):
            self.add("val", f"{name}.png")

    def add(self, split, name, seed=None, boxes=True, size=SIZE, **options):
        """Add an image with its entry and boxes, and return the two annotations."""
        self.seed += 1
        save(self.root / split / name, self.seed if seed is None else seed, size, **options)
        return self.enter(split, name, size, boxes)

    def enter(self, split, name, size=SIZE, boxes=True):
        document = self.documents[split]
        id = len(document["images"]) + 1
        document["images"].append({"id": id, "file_name": name, "width": size[0], "height": size[1]})
        if not boxes:
            return None
        return [self.box(split, id, 1, [8, 8, 30, 20]), self.box(split, id, 2, [40, 30, 20, 25])]

    def box(self, split, image, category, bbox, **fields):
        entry = {
            "id": self.next[split],
            "image_id": image,
            "category_id": category,
            "bbox": bbox,
            "area": 500,
            "iscrowd": 0,
        }
        self.next[split] += 1
        self.documents[split]["annotations"].append(entry | fields)
        return self.documents[split]["annotations"][-1]

    def write(self):
        (self.root / "annotations").mkdir(exist_ok=True)
        for split, document in self.documents.items():
            (self.root / "annotations" / f"instances_{split}.json").write_text(json.dumps(document))
        return self.root


def test_a_clean_set_has_no_findings(tmp_path):
    root = Coco(tmp_path).write()
    report = report_of(root)
    assert report.findings == () and report.clean
    assert (report.format, report.splits, report.boxes) == ("coco", {"train": 3, "val": 2}, 10)
    assert report_of(root, splits=["val"]).splits == {"val": 2}


def planted(root):
    """Write a COCO data set with one defect of each kind, and return file and location by rule."""
    data = Coco(root)
    train = data.documents["train"]
    here = "instances_train.json"
    defects = {}

    def plant(rule, file=here, place=""):
        assert rule not in defects
        defects[rule] = (file, place)

    def annotation(entry):
        return f"annotation {entry['id']} of image {entry['image_id']}"

    def change(rule, **fields):
        """Add an image whose first annotation has other fields."""
        entry = data.add("train", f"{rule}.png")[0]
        entry.update(fields)
        plant(rule, place=annotation(entry))
        return entry

    # Images.
    data.enter("train", "missing.png")
    plant("missing-image", "missing.png")
    data.enter("train", "empty.png")
    (root / "train" / "empty.png").write_bytes(b"")
    plant("empty-image", "empty.png")
    data.add("train", "cut.jpg")
    whole = (root / "train" / "cut.jpg").read_bytes()
    (root / "train" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    plant("truncated-image", "cut.jpg")
    data.enter("train", "text.jpg")
    (root / "train" / "text.jpg").write_text("<html>404</html>")
    plant("unreadable-image", "text.jpg")
    data.enter("train", "bomb.png")
    (root / "train" / "bomb.png").write_bytes(huge_png())
    plant("huge-image", "bomb.png")
    data.add("train", "size.png")
    train["images"][-1]["width"] = 97
    plant("size-mismatch", place="size.png")
    data.add("train", "upright.jpg", exif=exif(3))
    plant("exif-rotated", "upright.jpg")
    data.add("train", "turned.jpg", exif=exif(6))  # its entry has the size before turning
    plant("exif-unrotated", place="turned.jpg")
    data.add("train", "grey.png")
    Image.fromarray(picture(900)).convert("CMYK").save(root / "train" / "grey.png", format="JPEG")
    plant("pixel-mode", "grey.png")
    save(root / "train" / "stray.png", 901)
    plant("unlisted-image", "stray.png")
    (root / "train" / "out.png").symlink_to("/etc/hostname")
    data.enter("train", "../../outside.png", boxes=False)
    plant("path-outside-root", "out.png")

    # Boxes and ids.
    change("nan-box", bbox=[float("nan"), 8, 30, 20])
    change("zero-area", bbox=[8, 8, 0, 20])
    change("negative-size", bbox=[38, 8, -30, 20])
    change("outside-image", bbox=[200, 8, 30, 20])
    change("clipped", bbox=[80, 8, 30, 20])
    change("whole-image-box", bbox=[0, 0, 96, 64])
    change("tiny-box", bbox=[8, 8, 1.5, 20])
    change("unknown-category", category_id=77)
    change("unknown-image", image_id=7777)
    change("missing-iscrowd").pop("iscrowd")
    change("missing-area").pop("area")
    first = change("duplicate-annotation-id")
    data.box("train", first["image_id"], 1, [50, 2, 20, 20], id=first["id"])
    entry = data.add("train", "repeat.png")[0]
    plant("duplicate-box", place=annotation(data.box("train", entry["image_id"], 1, entry["bbox"])))
    entry = data.add("train", "conflict.png")[0]
    plant("class-conflict", place=annotation(data.box("train", entry["image_id"], 2, [8, 8, 30, 20.5])))
    entry = data.add("train", "broken.png")[0]
    entry["bbox"] = [8, 8, 30]
    plant("broken-file", place=f"annotations[{train['annotations'].index(entry)}]")
    data.add("train", "background.png", boxes=False)
    plant("no-boxes")
    data.add("val", "zero.png")[0]["id"] = 0
    plant("zero-id", "instances_val.json", "an annotation")
    data.enter("val", "e.png")
    plant("duplicate-image", "instances_val.json", "images 2")

    # Classes.
    train["categories"] += [{"id": 3, "name": "Dog "}, {"id": 4, "name": "unicorn"}, {"id": 5, "name": "bird"}]
    data.box("train", 1, 3, [60, 5, 20, 20])
    data.box("train", 1, 5, [60, 30, 20, 20])
    data.documents["val"]["categories"].append({"id": 9, "name": "horse"})
    data.box("val", 1, 9, [60, 5, 20, 20])
    plant("similar-classes")
    plant("empty-class")
    plant("missing-class", "instances_val.json")
    plant("unknown-class", "instances_val.json")
    plant("imbalance")

    # The same picture twice.
    data.add("train", "twin.png", seed=1)
    plant("duplicate-pixels", "twin.png")
    data.add("val", "leak.png", seed=2)
    plant("leaked-image", "leak.png")
    data.add("train", "near.jpg", seed=3, quality=80)
    plant("near-duplicate", "near.jpg")
    data.add("train", "again.jpg", seed=4, quality=80)
    plant("near-leak", "d.png")
    data.write()
    os.mkfifo(root / "pipe.png")
    plant("special-file", "pipe.png")
    return defects


def test_every_planted_defect_is_found(tmp_path):
    defects = planted(tmp_path)
    assert len(defects) >= 35
    report = report_of(tmp_path)
    found = {finding.rule for finding in report.findings}
    assert found == set(defects)
    for rule, (file, place) in defects.items():
        assert (file, place) in places(report, rule), (rule, places(report, rule))
    for finding in report.findings:
        assert finding.what and "\n" not in finding.what and finding.advice == CHECKS[finding.rule].advice
    # Only planted defects: out.png is a link, outside.png a path, val lacks two classes and train one.
    assert {rule: count for rule, count in rules(report).items() if count > 1} == {
        "path-outside-root": 2,
        "missing-class": 3,
    }


def test_errors_come_first_and_the_report_goes_into_json(tmp_path):
    planted(tmp_path)
    report = report_of(tmp_path)
    severities = [finding.severity for finding in report.findings]
    assert severities == sorted(severities, key=("error", "warning", "note").index)
    document = json.loads(json.dumps(report.as_dict()))
    assert len(document["findings"]) == len(report.findings) == sum(document["rules"].values())
    assert document["count"]["error"] == severities.count("error") > 10
    assert not report.clean


def test_tiny_is_what_the_network_sees(tmp_path):
    data = Coco(tmp_path)
    data.documents["train"]["annotations"][0]["bbox"] = [8, 8, 3, 20]
    root = data.write()
    assert rules(report_of(root)) == {}
    report = report_of(root, resize=Resize(32, 64))  # half the size
    assert [finding.what for finding in report.findings] == [
        "annotation 1 of image 1: the box has 1.5 × 10 pixels in the network's input in a.png, 96 × 64"
    ]


def test_the_same_file_in_two_splits(tmp_path):
    data = Coco(tmp_path)
    for name in ("a.png", "b.png", "c.png", "d.png", "e.png"):
        folder = "train" if name < "d" else "val"
        (tmp_path / folder / name).rename(tmp_path / name)
    data.enter("val", "a.png")
    report = report_of(data.write())
    assert [(f.rule, f.path.name, f.what) for f in report.findings] == [
        ("leaked-image", "a.png", "splits train and val both have it")
    ]


def test_a_mistake_of_the_user(tmp_path):
    with pytest.raises(UserError, match="there is no such folder"):
        examine(tmp_path / "none")
    with pytest.raises(UserError, match="no data set of a known format"):
        examine(tmp_path)
    Coco(tmp_path).write()
    with pytest.raises(UserError, match="no split test; name one of train, val"):
        examine(tmp_path, ["test"])


# ------------------------------------------------------------------------------------------------------------------ VOC


def voc(root, splits):
    """Write a VOC data set with these stems per split; every image has one cat and one dog."""
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / name).mkdir(parents=True, exist_ok=True)
    for split, stems in splits.items():
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{stem}\n" for stem in stems))
        for stem in stems:
            if not (root / "JPEGImages" / f"{stem}.jpg").exists():
                save(root / "JPEGImages" / f"{stem}.jpg", zlib.crc32(stem.encode()))
                xml(root, stem, ("cat", 9, 9, 38, 28), ("dog", 41, 31, 60, 55))
    return root


def xml(root, stem, *objects, size=SIZE):
    boxes = "".join(
        f"<object><name>{name}</name><pose>Left</pose><bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax>"
        f"<ymax>{d}</ymax></bndbox></object>"
        for name, a, b, c, d in objects
    )
    text = f"<annotation><size><width>{size[0]}</width><height>{size[1]}</height></size>{boxes}</annotation>"
    (root / "Annotations" / f"{stem}.xml").write_text(text)


def test_a_clean_voc_set_and_its_union(tmp_path):
    root = voc(tmp_path, {"train": "abc", "val": "de", "trainval": "abcde"})
    assert report_of(root).findings == ()
    # A validation split within the training split is no union.
    root = voc(tmp_path / "leak", {"train": "abc", "val": "ab"})
    assert rules(report_of(root)) == {"leaked-image": 2}


def test_planted_defects_in_voc(tmp_path):
    root = voc(tmp_path, {"train": [*"abcdefghijklm", "twin"], "val": ["v", "w", "leak"]})
    cat, dog = ("cat", 9, 9, 38, 28), ("dog", 41, 31, 60, 55)
    (root / "JPEGImages" / "a.jpg").unlink()
    (root / "Annotations" / "b.xml").unlink()
    (root / "Annotations" / "c.xml").write_text('<!DOCTYPE x [<!ENTITY e "e">]><annotation>&e;</annotation>')
    xml(root, "d", cat, dog, cat)
    xml(root, "e", cat, ("dog", 80, 31, 120, 55))
    xml(root, "f", cat, ("dog", 41, 31, 41, 31))
    xml(root, "g", cat, dog, ("dog", 200, 9, 220, 20))
    xml(root, "h", cat, ("dog", 60, 31, 41, 55))
    xml(root, "i", cat, dog, ("cat", 41, 31, 60, 55))
    xml(root, "j", cat, dog, size=(64, 96))
    xml(root, "k", ("cat", 1, 1, 96, 64), dog)
    xml(root, "l")
    xml(root, "ghost", cat)
    save(root / "JPEGImages" / "stray.jpg", 5)
    whole = (root / "JPEGImages" / "m.jpg").read_bytes()
    (root / "JPEGImages" / "m.jpg").write_bytes(whole[:-40])
    (root / "JPEGImages" / "twin.jpg").write_bytes((root / "JPEGImages" / "d.jpg").read_bytes())
    (root / "JPEGImages" / "leak.jpg").write_bytes((root / "JPEGImages" / "e.jpg").read_bytes())
    lists = root / "ImageSets" / "Main" / "train.txt"
    lists.write_text(lists.read_text() + "d\n../x\n")

    report = report_of(root)
    assert {rule: places(report, rule) for rule in rules(report)} == {
        "missing-image": [("a.jpg", "")],
        "missing-annotation": [("b.xml", "")],
        "broken-file": [("c.xml", "")],
        "duplicate-box": [("d.xml", "object 3")],
        "clipped": [("e.xml", "object 2")],
        "zero-area": [("f.xml", "object 2")],
        "outside-image": [("g.xml", "object 3")],
        "negative-size": [("h.xml", "object 2")],
        "class-conflict": [("i.xml", "object 3")],
        "size-mismatch": [("j.xml", "j.jpg")],
        "whole-image-box": [("k.xml", "object 1")],
        "no-boxes": [("b.xml", "")],
        "orphan-annotation": [("ghost.xml", "")],
        "unlisted-image": [("stray.jpg", "")],
        "truncated-image": [("m.jpg", "")],
        "duplicate-pixels": [("twin.jpg", "")],
        "leaked-image": [("leak.jpg", "")],
        "duplicate-image": [("train.txt", "line 15")],
        "path-outside-root": [("train.txt", "line 16")],
    }


# ----------------------------------------------------------------------------------------------------------------- YOLO

LINES = "0 0.3 0.3 0.3 0.3\n1 0.6 0.7 0.2 0.3\n"


def yolo(root, train, val, names=("cat", "dog")):
    text = f"names: [{', '.join(names)}]\ntrain: images/train\nval: images/val\n"
    for split, stems in (("train", train), ("val", val)):
        for stem in stems:
            save(root / "images" / split / f"{stem}.png", zlib.crc32(stem.encode()))
            label(root, split, stem, LINES)
    (root / "data.yaml").write_text(text)
    return root


def label(root, split, stem, text):
    (root / "labels" / split).mkdir(parents=True, exist_ok=True)
    (root / "labels" / split / f"{stem}.txt").write_text(text)


def test_a_clean_yolo_set(tmp_path):
    assert report_of(yolo(tmp_path, "abc", "de")).findings == ()


def test_planted_defects_in_yolo(tmp_path):
    root = yolo(tmp_path, [*"abcdefghijk", "twin"], ["v", "leak"])
    (root / "labels" / "train" / "a.txt").unlink()
    label(root, "train", "b", LINES + "0 0.3 0.3 0.3\n")
    label(root, "train", "c", LINES + "7 0.3 0.3 0.3 0.3\n")
    label(root, "train", "d", LINES + "1 300 200 20 20\n")
    label(root, "train", "e", LINES + "0 0.3 0.3 0.3 0.3\n")
    label(root, "train", "f", "0 0.3 0.3 0.3 0.3\n1 0.95 0.7 0.2 0.3\n")
    label(root, "train", "g", LINES + "1 0.6 0.7 0.0 0.3\n")
    label(root, "train", "h", LINES + "1 0.3 0.3 nan 0.3\n")
    label(root, "train", "i", LINES + "1 0.3 0.3 0.01 0.3\n")
    label(root, "train", "ghost", LINES)
    (root / "images" / "train" / "j.png").write_bytes(b"")
    save(root / "images" / "train" / "k.jpg", 77)
    save(root / "images" / "train" / "twin.png", zlib.crc32(b"e"))
    save(root / "images" / "val" / "leak.png", zlib.crc32(b"f"))
    save(root / "images" / "stray.png", 78)

    report = report_of(root)
    assert {rule: places(report, rule) for rule in rules(report)} == {
        "missing-label": [("a.txt", "")],
        "no-boxes": [("a.txt", "")],
        "broken-file": [("b.txt", "line 3")],
        "unknown-category": [("c.txt", "line 3")],
        "pixel-box": [("d.txt", "line 3")],
        "outside-image": [("d.txt", "line 3")],
        "duplicate-box": [("e.txt", "line 3")],
        "clipped": [("f.txt", "line 2")],
        "zero-area": [("g.txt", "line 3")],
        "nan-box": [("h.txt", "line 3")],
        "tiny-box": [("i.txt", "line 3")],
        "orphan-annotation": [("ghost.txt", "")],
        "empty-image": [("j.png", "")],
        "shared-annotation": [("k.txt", "")],
        "duplicate-pixels": [("twin.png", "")],
        "leaked-image": [("leak.png", "")],
        "unlisted-image": [("stray.png", "")],
    }


# -------------------------------------------------------------------------------------------------------------- hostile


def test_a_broken_head_is_a_finding(tmp_path):
    root = Coco(tmp_path).write()
    (root / "annotations" / "instances_val.json").write_text('{"images": [\n}')
    report = report_of(root)
    assert places(report, "broken-file") == [("instances_val.json", "line 2 column 1")]
    assert report.splits == {"train": 3}
    with pytest.raises(UserError, match="correct that by hand before --fix"):
        write_repaired_copy(report, tmp_path.with_name("fixed"))


@pytest.mark.parametrize("text", ["[" * 100_000, '{"images": ' + "9" * 10_000 + "}", "\0", "[]", "null", "NaN"])
def test_hostile_json(tmp_path, text):
    root = Coco(tmp_path).write()
    (root / "annotations" / "instances_train.json").write_text(text)
    assert rules(report_of(root))["broken-file"] == 1


def test_broken_yaml_and_aliases(tmp_path):
    root = yolo(tmp_path, "ab", "c")
    for text in ("names: [", "a: &a [x]\nb: *a\n", "[]"):
        (root / "data.yaml").write_text(text)
        assert places(report_of(root), "broken-file")[0][0] == "data.yaml"


def test_pipes_devices_and_huge_files_are_not_opened(tmp_path):
    root = voc(tmp_path, {"train": "ab", "val": "c"})
    os.mkfifo(root / "ImageSets" / "Main" / "cat_train.txt")
    os.truncate(root / "Annotations" / "a.xml", 2**33)  # sparse: it needs no disk space
    (root / "Annotations" / "zero.xml").symlink_to("/dev/zero")
    report = report_of(root)
    assert {rule: places(report, rule) for rule in rules(report)} == {
        "special-file": [("cat_train.txt", "")],
        "oversized-file": [("a.xml", "")],
        "path-outside-root": [("zero.xml", "")],
    }
    with pytest.raises(UserError, match="correct that by hand"):
        write_repaired_copy(report, tmp_path.with_name("fixed"))


def test_a_huge_annotation_file_is_not_read(tmp_path):
    root = Coco(tmp_path).write()
    os.truncate(root / "annotations" / "instances_train.json", 2**33)  # sparse: it needs no disk space
    report = report_of(root)
    assert places(report, "oversized-file") == [("instances_train.json", "")] and not report.clean


def test_links_out_of_the_root_are_not_followed(tmp_path):
    outside = tmp_path / "outside"
    save(outside / "a.jpg", 1)
    root = voc(tmp_path / "data", {"train": "abc", "val": "de"})
    (root / "JPEGImages" / "a.jpg").unlink()
    (root / "JPEGImages" / "a.jpg").symlink_to(outside / "a.jpg")
    (root / "JPEGImages" / "loop.jpg").symlink_to("loop.jpg")
    (root / "more").symlink_to(tmp_path)
    report = report_of(root)
    assert rules(report) == {"path-outside-root": 4}
    assert {file for file, _ in places(report, "path-outside-root")} == {"a.jpg", "loop.jpg", "more"}


def test_names_of_any_kind(tmp_path):
    data = Coco(tmp_path)
    for name in ("x" * 5000, "nul\0.png", "line\nbreak.png", "/etc/passwd", "<script>.png", "\ud800.png"):
        data.enter("train", name, boxes=False)
    report = report_of(data.write())
    assert set(rules(report)) <= {"missing-image", "path-outside-root", "broken-file", "unreadable-image"}
    assert sum(rules(report).values()) >= 1
    assert all(finding.what.isprintable() for finding in report.findings)


@pytest.mark.parametrize("seed", range(4))
def test_files_with_random_damage(tmp_path, seed):
    """For any bytes the check finishes, and repaired problems do not come back."""
    rng = np.random.default_rng(seed)
    makers = (
        lambda root: Coco(root).write(),
        lambda root: voc(root, {"train": "abc", "val": "de"}),
        lambda root: yolo(root, "abc", "de"),
    )
    words = [
        b"",
        b"null",
        b"-1",
        b"1e308",
        b"NaN",
        b"[]",
        b"{",
        b'"',
        b"0",
        b"9" * 30,
        b"<",
        b"\xff",
        b"\n",
        b"../",
        b"\0",
    ]
    for number, make in enumerate(makers):
        root = make(tmp_path / str(number))
        files = sorted(path for path in root.rglob("*") if path.is_file() and path.suffix not in (".png", ".jpg"))
        for path in rng.choice(files, 2):
            data = bytearray(path.read_bytes())
            start = int(rng.integers(len(data) + 1))
            data[start : start + int(rng.integers(0, 9))] = words[rng.integers(len(words))]
            path.write_bytes(data)
        report = report_of(root)
        try:
            write_repaired_copy(report, tmp_path / f"{number} repaired")
        except UserError:
            assert not report.clean
        else:
            assert not [f for f in report_of(tmp_path / f"{number} repaired").findings if CHECKS[f.rule].repaired]


# --------------------------------------------------------------------------------------------------------------- repair


def state(root):
    """Return the content of every file."""
    return {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def repaired(root):
    """Return the repaired copy and the changes, and check that the original is unchanged."""
    out = root.with_name(f"{root.name}-repaired")
    (root / "README.md").write_text("# Cats and dogs\n")
    before = state(root)
    log = write_repaired_copy(report_of(root), out)
    assert state(root) == before
    assert (out / LOG).read_text(encoding="utf-8").splitlines() == log
    assert not [path for path in out.rglob("*") if path.is_symlink() or (path.stat().st_nlink > 1 and path.is_file())]
    return out, log


def test_images_of_another_split_below_a_folder_stay_there(tmp_path):
    root = yolo(tmp_path / "yolo", "abc", "de")
    images, labels = root / "images", root / "labels"
    for folder in (images, labels):
        for path in (folder / "train").iterdir():
            path.rename(folder / path.name)
    names = sorted(path.name for path in images.iterdir() if path.is_file())
    (root / "train.txt").write_text("".join(f"images/{name}\n" for name in names))
    text = (root / "data.yaml").read_text()
    (root / "data.yaml").write_text(re.sub("train: .*", "train: train.txt", text))
    out, log = repaired(root)
    assert log == []
    for split in ("train", "val"):
        assert [r.path.name for r in read(out, split).records] == [r.path.name for r in read(root, split).records]


def test_a_clean_set_is_copied_as_it_is(tmp_path):
    sets = (
        Coco(tmp_path / "coco").write(),
        voc(tmp_path / "voc", {"train": "abc", "val": "de", "trainval": "abcde"}),
        yolo(tmp_path / "yolo", "abc", "de"),
    )
    for root in sets:
        out, log = repaired(root)
        assert log == []
        images, copies = ({k: v for k, v in state(one).items() if k.suffix != ".yaml"} for one in (root, out))
        assert copies.pop(Path(LOG)) == b""
        assert {k: json.loads(v) if k.suffix == ".json" else v for k, v in images.items()} == {
            k: json.loads(v) if k.suffix == ".json" else v for k, v in copies.items()
        }
        assert report_of(out).findings == ()


def test_a_repaired_coco_set(tmp_path):
    defects = planted(tmp_path / "data")
    (tmp_path / "data" / "pipe.png").unlink()
    out, _ = repaired(tmp_path / "data")
    report = report_of(out)
    assert not [finding for finding in report.findings if CHECKS[finding.rule].repaired], rules(report)
    # Only problems that need a person remain.
    kept = {rule for rule in defects if not CHECKS[rule].repaired}
    assert set(rules(report)) <= kept
    assert {"class-conflict", "tiny-box", "unknown-category", "broken-file", "exif-unrotated"} <= set(rules(report))

    document = json.loads((out / "annotations" / "instances_train.json").read_text())
    entries = {entry["file_name"]: entry for entry in document["images"]}
    assert entries["size.png"]["width"] == 96
    boxes = {name: [a for a in document["annotations"] if a["image_id"] == e["id"]] for name, e in entries.items()}
    assert boxes["clipped.png"][0]["bbox"] == [80, 8, 16, 20]
    assert boxes["missing-area.png"][0]["area"] == 600 and boxes["missing-iscrowd.png"][0]["iscrowd"] == 0
    assert len(boxes["duplicate-annotation-id.png"]) == 3 and len(boxes["repeat.png"]) == 2
    assert [len(boxes[f"{rule}.png"]) for rule in ("nan-box", "zero-area", "negative-size", "outside-image")] == [1] * 4
    ids = [entry["id"] for entry in document["annotations"]]
    assert len(set(ids)) == len(ids)
    # One image of a pair stays; if they were in two splits, that of the evaluation split.
    files = {path.name for path in out.rglob("*.*g")}
    assert {"a.png", "leak.png", "d.png"} <= files and files.isdisjoint({"twin.png", "b.png", "again.jpg", "stray.png"})
    # Written upright: the same pixels up to the loss of JPEG, and no EXIF.
    upright = Image.open(out / "train" / "upright.jpg")
    assert not upright.getexif()
    before = np.asarray(Image.open(tmp_path / "data" / "train" / "upright.jpg"))[::-1, ::-1]
    assert np.abs(np.asarray(upright).astype(int) - before).mean() < 2


def test_a_repaired_set_can_be_read(tmp_path):
    """A copy without defects that need a person can be read."""
    root = voc(tmp_path / "voc", {"train": [*"abcdefg", "twin"], "val": ["v", "leak"]})
    cat, dog = ("cat", 9, 9, 38, 28), ("dog", 41, 31, 60, 55)
    (root / "JPEGImages" / "a.jpg").unlink()
    (root / "Annotations" / "b.xml").unlink()
    xml(root, "c", cat, dog, cat, ("dog", 41, 31, 41, 31))
    xml(root, "d", cat, ("dog", 80, 31, 120, 55), size=(5, 5))
    xml(root, "e", cat, ("dog", 96, 31, 120, 55), dog)  # one pixel wide within the image, which VOC cannot represent
    (root / "JPEGImages" / "twin.jpg").write_bytes((root / "JPEGImages" / "d.jpg").read_bytes())
    (root / "JPEGImages" / "leak.jpg").write_bytes((root / "JPEGImages" / "f.jpg").read_bytes())
    lists = root / "ImageSets" / "Main" / "train.txt"
    lists.write_text(lists.read_text() + "d\n")
    out, log = repaired(root)
    assert report_of(out).findings == ()
    assert (out / "ImageSets" / "Main" / "train.txt").read_text().split() == ["c", "d", "e", "g"]
    train = read(out, "train", progress=False)
    assert [record.boxes.tolist() for record in train.records] == [
        [[8, 8, 38, 28], [40, 30, 60, 55]],
        [[8, 8, 38, 28], [79, 30, 96, 55]],
        [[8, 8, 38, 28], [40, 30, 60, 55]],
        [[8, 8, 38, 28], [40, 30, 60, 55]],
    ]
    assert "<pose>Left</pose>" in (out / "Annotations" / "d.xml").read_text()
    assert len(log) > 5


def test_a_repaired_yolo_set(tmp_path):
    root = yolo(tmp_path / "yolo", [*"abcdef", "twin"], ["v", "leak"])
    (root / "labels" / "train" / "a.txt").unlink()
    label(root, "train", "b", "0 0.1 0.3 0.3 0.3\n1 0.5 0.5 1.1 0.5 0.9 0.9\n0 0.1 0.3 0.3 0.3\n")
    label(root, "train", "c", LINES + "0 0.3 0.3 nan 0.3\n")
    (root / "images" / "train" / "d.png").write_bytes(b"")
    save(root / "images" / "train" / "twin.png", zlib.crc32(b"e"))
    save(root / "images" / "val" / "leak.png", zlib.crc32(b"f"))
    out, _ = repaired(root)
    assert set(rules(report_of(out))) == {"no-boxes", "no-mask"}  # a.png, which now has an empty label file
    assert (out / "labels" / "train" / "a.txt").read_text() == ""
    assert (out / "labels" / "train" / "b.txt").read_text() == "0 0.125 0.3 0.25 0.3\n1 0.5 0.5 1 0.5 0.9 0.9\n"
    assert (out / "labels" / "train" / "c.txt").read_text() == LINES
    assert [record.path.stem for record in read(out, "train", progress=False).records] == ["a", "b", "c", "e"]


def test_a_yolo_file_of_two_splits_ends_in_one(tmp_path):
    root = yolo(tmp_path / "yolo", "abc", "de")
    (root / "data.yaml").write_text("names: [cat, dog]\ntrain: [images/train, images/val]\nval: images/val\n")
    assert rules(report_of(root)) == {"leaked-image": 2}
    out, _ = repaired(root)
    assert report_of(out).splits == {"train": 3, "val": 2} and report_of(out).findings == ()


def test_where_a_copy_may_not_go(tmp_path):
    root = Coco(tmp_path / "data").write()
    report = report_of(root)
    with pytest.raises(UserError, match="lies in the data set"):
        write_repaired_copy(report, root / "repaired")
    with pytest.raises(UserError, match="not empty"):
        write_repaired_copy(report, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]
