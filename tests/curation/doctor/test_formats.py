"""The check on the formats of annotation tools: intact data, and data with defects of each format."""

import json

import pytest
from PIL import Image

from detect.curation.doctor.examine import examine

CORNERS = [[10, 20], [40, 60]]
SHAPE = {"label": "cat", "shape_type": "rectangle", "points": CORNERS}
OBJECT = {"classTitle": "cat", "geometryType": "rectangle", "points": {"exterior": CORNERS, "interior": []}}
RESULT = {"type": "rectanglelabels", "value": {"x": 10, "y": 20, "width": 30, "height": 40, "rectanglelabels": ["cat"]}}
REGION = {
    "shape_attributes": {"name": "rect", "x": 10, "y": 20, "width": 30, "height": 40},
    "region_attributes": {"class": "cat"},
}
COORDINATES = {"x": 25, "y": 40, "width": 30, "height": 40}
FORMATS = {
    "labelme": ("a.json", {"shapes": [SHAPE], "imagePath": "a.png"}, "."),
    "createml": ("x.json", [{"image": "a.png", "annotations": [{"label": "cat", "coordinates": COORDINATES}]}], "."),
    "supervisely": ("d/ann/a.png.json", {"size": {"width": 120, "height": 80}, "objects": [OBJECT]}, "d/img"),
    "label_studio": ("x.json", [{"data": {"image": "/u/a.png"}, "annotations": [{"result": [RESULT]}]}], "."),
    "via": ("x.json", {"a": {"filename": "a.png", "regions": [REGION], "file_attributes": {}}}, "."),
    "fiftyone": ("labels.json", {"labels": {"a": [{"label": "cat", "bounding_box": [0.1, 0.2, 0.3, 0.4]}]}}, "data"),
    "huggingface": ("metadata.jsonl", {"file_name": "a.png", "objects": {"bbox": [[1, 2, 30, 40]], "label": [1]}}, "."),
}


@pytest.fixture
def save(tmp_path):
    """Return a function that writes a document and an image of noise in one of the formats."""

    def write(format, document=None):
        name, intact, images = FORMATS[format]
        for path in (tmp_path / name, tmp_path / images / "a.png"):
            path.parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(json.dumps(intact if document is None else document))
        Image.effect_noise((120, 80), 60).convert("RGB").save(tmp_path / images / "a.png")
        return tmp_path / images

    return write


@pytest.mark.parametrize("format", FORMATS)
def test_intact_data_and_images_that_no_file_names(tmp_path, save, format):
    images = save(format)
    report = examine(tmp_path, progress=False)
    assert (report.format, list(report.splits.values()), report.boxes) == (format, [1], 1)
    assert report.findings == ()
    Image.effect_noise((120, 80), 60).save(images / "z.png")
    assert [finding.rule for finding in examine(tmp_path, progress=False).findings] == ["unlisted-image"]


@pytest.mark.parametrize(
    ("format", "document", "rule", "place"),
    [
        ("labelme", {"shapes": [SHAPE, SHAPE | {"points": 3}], "imagePath": "a.png"}, "broken-file", "shape 2"),
        ("labelme", {"shapes": [SHAPE, SHAPE | {"shape_type": "line"}], "imagePath": "a.png"}, "shape-without-area",
         "shape 2"),
        ("createml", [{"image": "a.png", "annotations": [{"coordinates": COORDINATES}]}], "broken-file",
         "image 1, annotation 1"),
        ("label_studio", [{"data": {"image": "a.png"}, "annotations": []}], "unlabelled-image", "task 1"),
        ("via", {"a": {"filename": "a.png", "regions": [REGION, 5], "file_attributes": {}}}, "broken-file", "region 2"),
    ],
)  # fmt: skip
def test_defects_have_a_place(tmp_path, save, format, document, rule, place):
    save(format, document)
    finding = next(finding for finding in examine(tmp_path, progress=False).findings if finding.rule == rule)
    assert finding.place == place and finding.advice


def test_an_image_only_in_its_annotation_file(tmp_path, save):
    save("labelme")
    document = {"shapes": [SHAPE], "imagePath": "b.png", "imageData": "iVBORw0KGgo="}
    (tmp_path / "b.json").write_text(json.dumps(document))
    (finding,) = examine(tmp_path, progress=False).findings
    assert finding.rule == "embedded-image" and finding.what == "b.png is only in its imageData"
    assert finding.advice.startswith("save it as a file of this name") and "--data" not in finding.advice
