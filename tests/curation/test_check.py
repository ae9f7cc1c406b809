"""`detect data check`: what it prints and writes, its exit code, and the anchors of a config."""

import io
import json
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from rich.console import Console

import detect
from detect.config import load_config
from detect.curation.check import anchors_of, run_check
from detect.errors import UserError
from detect.models.rpn import RPN

CONFIG = """
model:
  name: faster_rcnn
  backbone: {name: resnet, depth: 18, norm: batch, train_stages: 5}
  neck: {name: fpn, channels: 16}
  rpn: {anchor_sizes: [4, 8, 16, 32, 64], anchor_offset: 0.5}
data: {short_side: [48, 64], long_side: 128}
"""


def picture(seed):
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return Image.fromarray(cv2.resize(coarse, (96, 64), interpolation=cv2.INTER_CUBIC))


def coco(root, boxes=((8, 8, 30, 20), (40, 30, 20, 25)), name="cat", count=3):
    (root / "annotations").mkdir(parents=True)
    (root / "train").mkdir()
    images, annotations = [], []
    for id in range(1, count + 1):
        picture(id).save(root / "train" / f"{id}.png")
        images.append({"id": id, "file_name": f"{id}.png", "width": 96, "height": 64})
        for box in boxes:
            entry = {"id": len(annotations) + 1, "image_id": id, "category_id": 1, "bbox": box}
            annotations.append(entry | {"area": box[2] * box[3], "iscrowd": 0})
    document = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": name}]}
    (root / "annotations" / "instances_train.json").write_text(json.dumps(document))
    return root


def config_file(folder, text=CONFIG):
    (folder / "config.yaml").write_text(text)
    return folder / "config.yaml"


def run(root, **options):
    console = Console(width=200, file=io.StringIO())
    code = run_check(root, console=console, workers=1, **options)
    return code, console.file.getvalue()


def test_a_clean_set(tmp_path):
    code, text = run(coco(tmp_path / "data"))
    assert code == 0
    assert "(coco; train 3): 6 boxes; 0 errors, 0 warnings, 0 notes" in text and text.count("\n") == 1


def test_findings_in_all_three_forms(tmp_path):
    root = coco(tmp_path / "data", boxes=[(8, 8, 30, 20), (80, 8, 30, 20), (8, 8, 30, 20)], count=5)
    (root / "train" / "1.png").write_bytes(b"")
    files = {"json_file": tmp_path / "f.json", "html": tmp_path / "f.html"}
    code, text = run(root, **files)
    assert code == 1
    assert "error    empty-image × 1" in text and "warning  clipped × 4" in text and "and 1 more" in text
    assert "annotations/instances_train.json: annotation 5 of image 2: box (80, 8, 110, 28) in 2.png, 96 × 64" in text
    document = json.loads(files["json_file"].read_text())
    assert document["rules"] == {"empty-image": 1, "clipped": 4, "duplicate-box": 4}
    repeated = document["findings"][-1]
    assert repeated["place"] == "annotation 15 of image 5" and repeated["boxes"] == [[8, 8, 38, 28]] * 2
    assert repeated["advice"] and repeated["file"] == str(root / "annotations" / "instances_train.json")
    page = files["html"].read_text()
    assert page.count("data:image/jpeg") == 8 and "clipped × 4" in page


def test_from_python(tmp_path, capsys):
    root = coco(tmp_path / "data", boxes=[(8, 8, 30, 20), (80, 8, 30, 20)])
    files = {"json": tmp_path / "f.json", "html": str(tmp_path / "f.html"), "fix": tmp_path / "fixed"}
    report = detect.check(str(root), config=config_file(tmp_path), progress=False, **files)
    assert not capsys.readouterr().out
    assert not report.clean and report.anchors["ceiling"]["all"]["truths"] == 6
    lines = str(report).splitlines()
    assert lines[0].startswith("warning clipped × 3, first ") and "annotation 2 of image 1" in lines[0]
    assert "(coco; train 3): 6 boxes; 0 errors, " in lines[-1]
    written = json.loads((tmp_path / "f.json").read_text())
    assert written["rules"]["clipped"] == 3 and written["anchors"] == report.anchors
    assert (tmp_path / "f.html").exists() and detect.check(tmp_path / "fixed", ["train"], progress=False).clean


def test_a_repaired_copy(tmp_path):
    root = coco(tmp_path / "data", boxes=[(8, 8, 30, 20), (80, 8, 30, 20)])
    code, text = run(root, fix=tmp_path / "repaired")
    assert code == 1 and "a copy with 3 changes" in text and text.endswith("; no errors remain\n")
    assert run(tmp_path / "repaired")[0] == 0


class _Links(HTMLParser):
    """Links and scripts of a page."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        links = [value for name, value in attributes if name in ("src", "href") and not value.startswith("data:")]
        if tag in ("script", "link", "iframe") or links or any(name.startswith("on") for name, _ in attributes):
            self.found.append((tag, attributes))


def test_the_page_runs_nothing_that_the_data_says(tmp_path):
    name = '"><script src="http://x">alert(1)</script>$title'
    root = coco(tmp_path / "data", name=name)
    path = root / "annotations" / "instances_train.json"
    document = json.loads(path.read_text())
    document["categories"].append({"id": 2, "name": name.upper()})
    document["images"].append({"id": 9, "file_name": "<img src=x onerror=alert(1)>.png"})
    path.write_text(json.dumps(document))
    code, text = run(root, html=tmp_path / "f.html")
    page = (tmp_path / "f.html").read_text()
    links = _Links()
    links.feed(page)
    assert code == 1 and links.found == [] and "&lt;script" in page and "[/" not in text


def test_anchors_are_those_of_the_network(tmp_path):
    config = load_config(config_file(tmp_path))
    anchors = anchors_of(config)
    assert anchors.strides == (4, 8, 16, 32, 64) and anchors.sizes == ((4,), (8,), (16,), (32,), (64,))
    shapes = np.stack([anchors.shapes(level) for level in range(5)])
    torch.testing.assert_close(
        torch.from_numpy(shapes).float(), RPN(1, anchors.strides, config.model.rpn).anchors.shapes
    )
    single = CONFIG.replace("{name: fpn, channels: 16}", "null")
    one_level = anchors_of(load_config(config_file(tmp_path, single)))
    assert one_level.sizes == ((4, 8, 16, 32, 64),) and one_level.strides == (16,)
    fast = CONFIG.replace("faster_rcnn", "fast_rcnn").replace(
        "  rpn: {anchor_sizes: [4, 8, 16, 32, 64], anchor_offset: 0.5}\n", ""
    )
    assert anchors_of(load_config(config_file(tmp_path, fast))) is None


def test_the_anchors_of_a_config(tmp_path):
    root = coco(tmp_path / "data", boxes=[(8, 8, 40, 10), (8, 30, 36, 9)])
    code, text = run(root, config=config_file(tmp_path), json_file=tmp_path / "f.json", html=tmp_path / "f.html")
    anchors = json.loads((tmp_path / "f.json").read_text())["anchors"]
    assert anchors["ceiling"]["all"]["truths"] == 6
    assert anchors["proposed"]["all"]["mean"] > anchors["ceiling"]["all"]["mean"]
    assert "anchor_ratios" in text and "anchor_ratios" in (tmp_path / "f.html").read_text()
    assert code == ("anchors" in text.split("train 3")[0])
    # The proposed YAML, pasted into the config, gives the reported result.

    values = yaml.safe_load(CONFIG)
    values["model"]["rpn"] |= yaml.safe_load(anchors["yaml"])["model"]["rpn"]
    _, _ = run(root, config=config_file(tmp_path, yaml.safe_dump(values)), json_file=tmp_path / "g.json")
    again = json.loads((tmp_path / "g.json").read_text())["anchors"]["ceiling"]
    assert again == anchors["proposed"]


def test_mistakes_of_the_user(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        run_check(tmp_path / "none")
    root = coco(tmp_path / "data")
    with pytest.raises(UserError, match=r"none\.yaml: no such file, and no config has this name"):
        run(root, config=tmp_path / "none.yaml")
    with pytest.raises(UserError, match="choose another path"):
        run(root, json_file=tmp_path / "none" / "f.json")
