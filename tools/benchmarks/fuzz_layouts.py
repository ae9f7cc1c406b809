"""Intact data sets in each format, to be damaged by `fuzz_readers.py`. Each has two images of 40 × 30 pixels."""

from __future__ import annotations

import json
from typing import Any

SIZE = (40, 30)

COCO = {
    "images": [{"id": id, "file_name": f"{id}.png", "width": 40, "height": 30} for id in (1, 2)],
    "categories": [{"id": 3, "name": "cat", "supercategory": "pet"}, {"id": 7, "name": "dog"}],
    "annotations": [
        {"id": id, "image_id": 1, "category_id": 3, "bbox": [3, 4.5, 10, 20], "area": 200.0, "iscrowd": 0}
        for id in (1, 2)
    ],
}
OBJECT = """  <object>
    <name>cat</name>
    <difficult>0</difficult>
    <bndbox><xmin>3</xmin><ymin>4.5</ymin><xmax>20</xmax><ymax>25</ymax></bndbox>
  </object>
"""
XML = f"""<?xml version="1.0" encoding="utf-8"?>
<annotation>
  <filename>1.png</filename>
  <size><width>40</width><height>30</height><depth>3</depth></size>
{2 * OBJECT}</annotation>
"""
YAML = "train: images/train\nval: val.txt\nnc: 2\nnames:\n  0: cat\n  1: dog\n"

CORNERS = [[3, 4.5], [20, 25]]
LABELME: dict[str, Any] = {
    "version": "5.5.0",
    "shapes": [
        {"label": "cat", "points": CORNERS, "shape_type": kind, "flags": {}}
        for kind in ("rectangle", "circle", "point")
    ],
    "imagePath": "1.png",
    "imageData": None,
    "imageHeight": 30,
    "imageWidth": 40,
}
CREATEML = [
    {
        "image": "1.png",
        "annotations": 2 * [{"label": "cat", "coordinates": {"x": 9, "y": 8.5, "width": 7, "height": 6}}],
    },
    {"image": "2.png", "annotations": []},
]
BITMAP = "eJzrDPBz5+WS4mJgYOD19HAJAtKsQMzGCCQYlBsyn4ElXBxDKuYk/zh4hKGZgesDI/Ok9JuqIAWern4u65wSmgDXjBBp"  # 5 × 6 pixels
SUPERVISELY = {
    "size": {"width": 40, "height": 30},
    "objects": [
        {"classTitle": "cat", "geometryType": "rectangle", "points": {"exterior": CORNERS, "interior": []}},
        {"classTitle": "dog", "geometryType": "bitmap", "bitmap": {"origin": [3, 4], "data": BITMAP}},
    ],
}
FIFTYONE = {
    "classes": ["cat", "dog"],
    "labels": {"1": [{"label": 1, "bounding_box": [0.1, 0.2, 0.3, 0.4]}], "2": [], "3": None},
}
SHAPES: dict[str, dict[str, Any]] = {
    "rectanglelabels": {"x": 10, "y": 20, "width": 30, "height": 40, "rotation": 10},
    "ellipselabels": {"x": 10, "y": 20, "radiusX": 3, "radiusY": 4, "rotation": 10},
    "polygonlabels": {"points": [*CORNERS, [9, 9]]},
}
RESULTS = [
    {"id": "a", "type": kind, "original_width": 40, "original_height": 30, "value": {kind: ["cat"], **value}}
    for kind, value in SHAPES.items()
]
TASKS = [
    {"data": {"image": "/data/1/ab12cd34-1.png"}, "annotations": [{"result": RESULTS}]},
    {"image": "2.png", "label": [{"rectanglelabels": ["cat"], **SHAPES["rectanglelabels"], "rotation": 0}]},
]
VIA = {
    f"{number}.png9": {
        "filename": f"{number}.png",
        "size": 9,
        "regions": [
            {"region_attributes": {"class": "cat"}, "shape_attributes": shape}
            for shape in (
                {"name": "rect", "x": 1, "y": 2, "width": 3, "height": 4},
                {"name": "polygon", "all_points_x": [1, 2, 3], "all_points_y": [1, 2, 1]},
                {"name": "ellipse", "cx": 9, "cy": 8, "rx": 3, "ry": 4, "theta": 0.5},
            )
        ],
    }
    for number in (1, 2)
}

CVAT_SHAPES = """<box label="cat" occluded="0" xtl="3" ytl="4.5" xbr="20" ybr="25" rotation="15.0"/>
    <polygon label="dog" points="1,2;30.5,2;30,20"/> <polyline label="dog" points="1,2;3,4"/>
    <mask label="cat" rle="1, 2" left="4" top="5" width="20" height="15"/>
    <ellipse label="cat" cx="9" cy="9" rx="3" ry="4"/>
"""
CVAT = f"""<?xml version="1.0" encoding="utf-8"?>
<annotations>
  <meta><task><subset>train</subset><labels><label><name>cat</name></label><label><name>dog</name></label></labels></task></meta>
  <image id="0" name="1.png" width="40" height="30" subset="train">{CVAT_SHAPES}</image>
  <image id="1" name="images/2.png" width="40" height="30"/>
</annotations>
"""
TRACKS = """<?xml version="1.0" encoding="utf-8"?>
<annotations>
  <track id="0" label="cat"><box frame="1" outside="0" xtl="3" ytl="4.5" xbr="20" ybr="25"/>
  <box frame="2" outside="1" xtl="3" ytl="4.5" xbr="20" ybr="25"/></track>
</annotations>
"""
VIA_CSV = """filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,region_attributes
1.png,9,"{}",2,0,"{""name"":""rect"",""x"":3,""y"":4,""width"":10,""height"":20}","{""class"":""cat""}"
1.png,9,"{}",2,1,"{""name"":""polygon"",""all_points_x"":[1,9,5],""all_points_y"":[1,2,9]}","{""class"":{""dog"":true}}"
2.png,9,"{}",0,0,"{}","{}"
"""
OPEN_IMAGES = """ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf
1,xclick,/m/01,1,0.1,0.6,0.2,0.8,0,0,0
2,xclick,/m/02,1,0.1,0.6,0.2,0.8,0,0,1
"""
KITTI = "cat 0.00 0 1.85 3 4.5 20 25 1.67 1.87 3.69 -16.53 2.39 58.49 1.57\n"
FACE = "3 4 10 20 0 0 0 0 0 0\n"


FILES: dict[str, dict[str, str]] = {
    "coco": {"annotations/instances_train.json": json.dumps(COCO)},
    "voc": {
        "Annotations/1.xml": XML,
        "Annotations/2.xml": "<annotation/>",
        "ImageSets/Main/train.txt": "1\n2\n",
    },
    "yolo": {
        "data.yaml": YAML,
        "labels/train/1.txt": "0 0.5 0.5 0.25 0.5\n1 0.1 0.1 0.9 0.1 0.9 0.9\n",
        "labels/train/2.txt": "",
        "val.txt": "./images/train/1.png\nimages/train/2.png\n",
    },
    "labelme": {"1.json": json.dumps(LABELME), "2.json": json.dumps(LABELME | {"imagePath": "2.png"})},
    "createml": {"train/_annotations.createml.json": json.dumps(CREATEML)},
    "supervisely": {
        "meta.json": json.dumps({"classes": [{"title": name, "shape": "rectangle"} for name in ("cat", "dog")]}),
        "train/ann/1.png.json": json.dumps(SUPERVISELY),
        "train/ann/2.png.json": json.dumps(SUPERVISELY | {"objects": []}),
    },
    "fiftyone": {"labels.json": json.dumps(FIFTYONE)},
    "huggingface": {
        "train/metadata.jsonl": json.dumps(
            {"file_name": "1.png", "objects": {"bbox": 2 * [[1, 2, 3, 4]], "categories": ["cat", "dog"]}}
        )
    },
    "label_studio": {"tasks.json": json.dumps(TASKS)},
    "via": {"via_region_data.json": json.dumps(VIA)},
    "csv": {"train.csv": "filename,width,height,class,xmin,ymin,xmax,ymax\n1.png,40,30,cat,3,4,20,25\n2.png,,,,,,,\n"},
    "kaggle": {"train.csv": 'image_id;bbox;split\n1;"[3.0, 4.0, 10.0, 20.0]";train\n2;"[3,4,5,6]";val\n'},
    "retinanet": {"a.csv": "images/1.png,3,4,20,25,cat\nimages/2.png,,,,,\n", "classes.csv": "cat,0\ndog,1\n"},
    "automl": {"a.csv": "TRAIN,gs://a/1.png,cat,0.1,0.2,,,0.3,0.4,,\nTEST,gs://a/2.png,,,,,,,,,\n"},
    "via_csv": {"via.csv": VIA_CSV},
    "openimages": {"train-annotations-bbox.csv": OPEN_IMAGES, "class-descriptions.csv": "/m/01,cat\n/m/02,dog\n"},
    "kitti": {"training/label_2/1.txt": 2 * KITTI, "training/label_2/2.txt": KITTI.replace("cat", "DontCare")},
    "cvat": {"annotations.xml": CVAT},
    "video": {"annotations.xml": TRACKS},
    "visdrone": {"annotations/1.txt": "3,4,10,20,1,4,0,0\n1,1,9,9,0,0,0,0,\n", "annotations/2.txt": "1,2,3,4,1,1,0,0"},
    "widerface": {"wider_face_train_bbx_gt.txt": f"a/1.png\n2\n{2 * FACE}a/2.png\n0\n0 0 0 0 0 0 0 0 0 0\n"},
}
"""The files of an intact data set in each layout. Its images are 1.png and 2.png."""
IMAGES = {
    **dict.fromkeys(FILES, "images/"),
    **{"coco": "train/", "voc": "JPEGImages/", "yolo": "images/train/", "labelme": "", "createml": "train/"},
    **{"supervisely": "train/img/", "fiftyone": "data/", "huggingface": "train/", "label_studio": ""},
    **{"kitti": "training/image_2/", "openimages": "train/", "video": "images/frame_00000"},
}
"""Folder of the images of each layout, and the first letters of their names."""
