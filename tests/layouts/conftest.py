"""Drawn pictures with known boxes, and a writer for each layout in which annotation tools save them.

A writer gets the pictures of each split, by the name that the split has in its files, and the names of all classes. The
tests compare what is read with what was drawn, picture by picture, identified by its bytes.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

import numpy as np
import pytest
from PIL import Image

WIDTH, HEIGHT = 120, 80
CLASSES = ("red", "green")
COLOURS = ((220, 40, 40), (40, 220, 40), (40, 40, 220), (220, 220, 40))
Drawn = tuple[str, float, float, float, float]
"""Class and xyxy in pixels."""


@dataclass(frozen=True)
class Picture:
    """Image file with one rectangle of each class."""

    name: str
    content: bytes
    boxes: tuple[Drawn, ...]

    @property
    def stem(self) -> str:
        return self.name.rpartition(".")[0]


@cache
def draw(seed: int, name: str = "", classes: tuple[str, ...] = CLASSES) -> Picture:
    """Return a picture of noise and rectangles, of integer coordinates, that do not depend on names."""
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 60, (HEIGHT, WIDTH, 3)).astype(np.uint8)
    boxes = []
    for label, category in enumerate(classes):
        width, height = random.integers(20, 40), random.integers(15, 26)
        x, y = int(random.integers(0, WIDTH - width + 1)), int(random.integers(0, HEIGHT - height + 1))
        pixels[y : y + height, x : x + width] = COLOURS[label % len(COLOURS)]
        boxes.append((category, x, y, x + int(width), y + int(height)))
    with io.BytesIO() as file:
        Image.fromarray(pixels).save(file, "JPEG")
        return Picture(name or f"im{seed}.jpg", file.getvalue(), tuple(boxes))


Sets = Mapping[str, Sequence[Picture]]


@dataclass(frozen=True)
class Layout:
    """Layout of a data folder."""

    write: Callable[[Path, Sets, Sequence[str]], None]
    splits: tuple[str, ...]
    """Names of the splits in the files."""
    format: str

    def draw(self, root: Path, classes: tuple[str, ...] = CLASSES, names: Sequence[str] = (), seed: int = 0) -> Sets:
        """Write two pictures for each split, with these file names or `im0.jpg` …, and return them by split."""
        names = names or [f"im{number}.jpg" for number in range(2 * len(self.splits))]
        pictures = [draw(number, name, classes) for number, name in enumerate(names, start=seed)]
        sets = {split: pictures[start :: len(self.splits)] for start, split in enumerate(self.splits)}
        self.write(root, sets, classes)
        return sets


def save(path: Path, content: str | bytes | Picture) -> Path:
    """Write a file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.content if isinstance(content, Picture) else content
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def found(dataset) -> dict[bytes, list[Drawn]]:
    """Return what was read: the boxes of each image, by the content of its file."""
    return {
        record.path.read_bytes(): sorted(
            (dataset.classes[label], *np.round(box, 1).tolist())
            for label, box in zip(record.labels, record.boxes.astype(float), strict=True)
        )
        for record in dataset.records
    }


def drawn(pictures: Sequence[Picture]) -> dict[bytes, list[Drawn]]:
    """Return what was drawn, to compare with `found`."""
    return {picture.content: sorted(picture.boxes) for picture in pictures}


# ---------------------------------------------------------------------------------------------------------------- COCO


def coco(pictures: Sequence[Picture], classes: Sequence[str], folder: str = "") -> dict:
    """Return the content of a COCO file with `folder` before each file name."""
    images = [
        {"id": id, "file_name": folder + picture.name, "width": WIDTH, "height": HEIGHT}
        for id, picture in enumerate(pictures, start=1)
    ]
    boxes = [(id, *box) for id, picture in enumerate(pictures, start=1) for box in picture.boxes]
    annotations = [
        {
            "id": number,
            "image_id": id,
            "category_id": list(classes).index(name) + 1,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": (x2 - x1) * (y2 - y1),
            "iscrowd": 0,
        }
        for number, (id, name, x1, y1, x2, y2) in enumerate(boxes, start=1)
    ]
    categories = [{"id": id, "name": name, "supercategory": ""} for id, name in enumerate(classes, start=1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def coco_layout(file: str, image: str, folder: str = "", splits=("train", "val")) -> Layout:
    """Return a layout of COCO files and images with `{}` for the split, and `folder` before each file name."""

    def write(root, sets, classes):
        for split, pictures in sets.items():
            save(root / file.format(split), json.dumps(coco(pictures, classes, folder.format(split))))
            for picture in pictures:
                save(root / image.format(split) / picture.name, picture)

    return Layout(write, splits, "coco")


COCO = {
    "coco": coco_layout("annotations/instances_{}.json", "{}"),
    "coco-2017": coco_layout("annotations/instances_{}.json", "images/{}", splits=("train2017", "val2017")),
    "coco-roboflow": coco_layout("{}/_annotations.coco.json", "{}", splits=("train", "valid", "test")),
    "coco-fiftyone": coco_layout("labels.json", "data", splits=("labels",)),
    "coco-label-studio": coco_layout("result.json", "images", "images/", splits=("result",)),
    "coco-cvat": coco_layout("annotations/instances_default.json", "images/default", splits=("default",)),
    "coco-stems": coco_layout("annotations/{}.json", "images"),
    "coco-beside": coco_layout("{}.json", "images", "images/"),
    "coco-nested": coco_layout("{}/annotations.json", "{}/images", "images/"),
}


# ----------------------------------------------------------------------------------------------------------------- VOC


def voc_xml(picture: Picture) -> str:
    """Return an XML file of VOC, whose pixels count from 1."""
    objects = "".join(
        f"<object><name>{escape(name)}</name><difficult>0</difficult><bndbox><xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin>"
        f"<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>\n"
        for name, x1, y1, x2, y2 in picture.boxes
    )
    size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
    return f"<annotation><filename>{escape(picture.name)}</filename>\n{size}\n{objects}</annotation>\n"


def per_image(format: str, text: Callable[[Picture], str], suffix: str, image: str, file: str, splits) -> Layout:
    """Return a layout with an annotation file for each image, in folders with `{}` for the split."""

    def write(root, sets, classes):
        for split, pictures in sets.items():
            for picture in pictures:
                save(root / image.format(split) / picture.name, picture)
                save(root / file.format(split) / f"{picture.stem}{suffix}", text(picture))

    return Layout(write, splits, format)


def voc_layout(image: str, file: str, splits=("train", "val")) -> Layout:
    return per_image("voc", voc_xml, ".xml", image, file, splits)


def voc_lists(base: str = "") -> Layout:
    def write(root, sets, classes):
        voc_layout(f"{base}JPEGImages", f"{base}Annotations").write(root, sets, classes)
        for split, pictures in sets.items():
            names = "".join(f"{picture.stem}\n" for picture in pictures)
            save(root / base / "ImageSets/Main" / f"{split}.txt", names)

    return Layout(write, ("train", "val"), "voc")


VOC = {
    "voc": voc_lists(),
    "voc-devkit": voc_lists("VOCdevkit/VOC2007/"),
    "voc-labelimg": voc_layout(".", ".", ("all",)),
    "voc-folders": voc_layout("images", "annotations", ("all",)),
    "voc-annots": voc_layout("{}/images", "{}/annots"),
    "voc-roboflow": voc_layout("{}", "{}", ("test", "train", "valid")),
}


# ---------------------------------------------------------------------------------------------------------------- YOLO


def yolo_text(picture: Picture, classes: Sequence[str]) -> str:
    lines = []
    for name, x1, y1, x2, y2 in picture.boxes:
        x, y, width, height = (x1 + x2) / 2 / WIDTH, (y1 + y2) / 2 / HEIGHT, (x2 - x1) / WIDTH, (y2 - y1) / HEIGHT
        lines.append(f"{list(classes).index(name)} {x:.6f} {y:.6f} {width:.6f} {height:.6f}\n")
    return "".join(lines)


def yolo_layout(
    image: str, label: str, yaml: str = "", paths: str = "", names_file: str = "", splits=("train", "val")
) -> Layout:
    """Return a layout with a YAML file, whose splits are `paths`, or with a file of class names."""

    def write(root, sets, classes):
        per_image("yolo", lambda picture: yolo_text(picture, classes), ".txt", image, label, splits).write(
            root, sets, classes
        )
        if yaml:
            entries = "".join(f"{split}: {paths.format(split)}\n" for split in sets)
            save(root / yaml, f"{entries}\nnc: {len(classes)}\nnames: {json.dumps(classes, ensure_ascii=False)}\n")
        else:
            save(root / names_file, "".join(f"{name}\n" for name in classes))

    return Layout(write, splits, "yolo")


def yolo_lists(root, sets, classes):
    YOLO["yolo"].write(root, sets, classes)
    for split, pictures in sets.items():
        save(root / f"{split}.txt", "".join(f"./images/{split}/{picture.name}\n" for picture in pictures))
    save(root / "data.yaml", f"train: train.txt\nval: val.txt\nnames: {json.dumps(classes, ensure_ascii=False)}\n")


def darknet(root, sets, classes):
    layout = yolo_layout("obj_{}_data", "obj_{}_data", names_file="obj.names", splits=tuple(sets))
    layout.write(root, sets, classes)
    for split, pictures in sets.items():
        save(root / f"{split}.txt", "".join(f"data/obj_{split}_data/{picture.name}\n" for picture in pictures))
    lists = "".join(f"{split} = data/{split}.txt\n" for split in sets)
    save(root / "obj.data", f"classes = {len(classes)}\n{lists}names = data/obj.names\nbackup = backup/\n")


YOLO = {
    "yolo": yolo_layout("images/{}", "labels/{}", "data.yaml", "images/{}"),
    "yolo-any-name": yolo_layout("images/{}", "labels/{}", "my pets.yml", "./images/{}/"),
    "yolo-windows": yolo_layout("images/{}", "labels/{}", "dataset.yaml", "C:\\\\Users\\\\me\\\\pets\\\\images\\\\{}"),
    "yolo-roboflow": yolo_layout(
        "{}/images", "{}/labels", "data.yaml", "../{}/images", splits=("train", "valid", "test")
    ),
    "yolo-lists": Layout(yolo_lists, ("train", "val"), "yolo"),
    "yolo-label-studio": yolo_layout("images", "labels", names_file="classes.txt", splits=("all",)),
    "yolo-labelimg": yolo_layout(".", ".", names_file="classes.txt", splits=("all",)),
    "yolo-classes": yolo_layout("images/{}", "labels/{}", names_file="labels/classes.txt"),
    "darknet": Layout(darknet, ("train", "valid"), "darknet"),
}


# ----------------------------------------------------------------------------------------------------- annotation tools


def labelme_json(picture: Picture) -> str:
    shapes = [
        {"label": name, "points": [[x1, y1], [x2, y2]], "group_id": None, "shape_type": "rectangle", "flags": {}}
        for name, x1, y1, x2, y2 in picture.boxes
    ]
    document = {"version": "5.2.1", "flags": {}, "shapes": shapes, "imagePath": Path(picture.name).name}
    return json.dumps(document | {"imageData": None, "imageHeight": HEIGHT, "imageWidth": WIDTH})


def cvat(root, sets, classes):
    rows = ""
    for picture in (picture for pictures in sets.values() for picture in pictures):
        save(root / "images" / picture.name, picture)
        rows += f'<image id="1" name={quoteattr(picture.name)} width="{WIDTH}" height="{HEIGHT}">\n'
        for name, x1, y1, x2, y2 in picture.boxes:
            rows += f'<box label={quoteattr(name)} occluded="0" xtl="{x1}" ytl="{y1}" xbr="{x2}" ybr="{y2}"/>\n'
        rows += "</image>\n"
    save(root / "annotations.xml", f"<annotations>\n<version>1.1</version>\n{rows}</annotations>\n")


def createml(root, sets, classes):
    for split, pictures in sets.items():
        entries = []
        for picture in pictures:
            save(root / split / picture.name, picture)
            annotations = [
                {
                    "label": name,
                    "coordinates": {"x": (x1 + x2) / 2, "y": (y1 + y2) / 2, "width": x2 - x1, "height": y2 - y1},
                }
                for name, x1, y1, x2, y2 in picture.boxes
            ]
            entries.append({"image": picture.name, "annotations": annotations})
        save(root / split / "_annotations.createml.json", json.dumps(entries))


def table(rows: Sequence[Sequence[object]]) -> str:
    with io.StringIO() as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
        return file.getvalue()


def csv_layout(file: str, image: str, splits, has_header: bool = True, folder: str = "") -> Layout:
    """Return a layout with a table for each split: TensorFlow's columns or, without a header, keras-retinanet's."""

    def write(root, sets, classes):
        for split, pictures in sets.items():
            rows = [["filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax"]] if has_header else []
            for picture in pictures:
                save(root / image.format(split) / picture.name, picture)
                for name, *corners in picture.boxes:
                    path = folder.format(split) + picture.name
                    rows.append([path, WIDTH, HEIGHT, name, *corners] if has_header else [path, *corners, name])
            save(root / file.format(split), table(rows))

    return Layout(write, splits, "csv")


def kitti_text(picture: Picture) -> str:
    return "".join(
        f"{name} 0.00 0 -1.57 {x1}.00 {y1}.00 {x2}.00 {y2}.00 1 1 1 1 1 1 1\n" for name, x1, y1, x2, y2 in picture.boxes
    )


def supervisely(root, sets, classes):
    entries = [{"title": name, "shape": "rectangle", "color": "#FF0000"} for name in classes]
    save(root / "meta.json", json.dumps({"classes": entries, "tags": []}))
    for split, pictures in sets.items():
        for picture in pictures:
            objects = [
                {
                    "classTitle": name,
                    "geometryType": "rectangle",
                    "points": {"exterior": [[x1, y1], [x2, y2]], "interior": []},
                }
                for name, x1, y1, x2, y2 in picture.boxes
            ]
            save(root / split / "img" / picture.name, picture)
            document = {"description": "", "tags": [], "size": {"height": HEIGHT, "width": WIDTH}, "objects": objects}
            save(root / split / "ann" / f"{picture.name}.json", json.dumps(document))


TOOLS = {
    "labelme": per_image("labelme", labelme_json, ".json", ".", ".", ("all",)),
    "labelme-folders": per_image("labelme", labelme_json, ".json", "{}/images", "{}/json", ("train", "val")),
    "cvat": Layout(cvat, ("all",), "cvat"),
    "createml": Layout(createml, ("train", "valid"), "createml"),
    "csv": csv_layout("{}.csv", "images", ("test", "train")),
    "csv-roboflow": csv_layout("{}/_annotations.csv", "{}", ("test", "train", "valid")),
    "csv-retinanet": csv_layout("{}.csv", "images", ("train", "val"), has_header=False, folder="images/"),
    "kitti": per_image("kitti", kitti_text, ".txt", "{}/image_2", "{}/label_2", ("training",)),
    "supervisely": Layout(supervisely, ("train", "val"), "supervisely"),
}
LAYOUTS = COCO | VOC | YOLO | TOOLS


@pytest.fixture(params=LAYOUTS)
def layout(request) -> Layout:
    """Every layout in turn."""
    return LAYOUTS[request.param]


@pytest.fixture
def layouts() -> dict[str, Layout]:
    return LAYOUTS


@pytest.fixture(name="draw")
def _draw():
    return draw


@pytest.fixture(name="found")
def _found():
    return found


@pytest.fixture(name="drawn")
def _drawn():
    return drawn
