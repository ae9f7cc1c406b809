"""Bad images and boxes are reported before the first step, and unusual ones are read the same everywhere.

The single rules and file kinds are tested with the readers; these tests go from the file to the loss.
"""

import io
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detect.backbones import ResNetOptions
from detect.data.canvases import Item
from detect.data.datamodule import DetectionData, DetectionImages
from detect.data.decode import decode
from detect.data.defects import RULES
from detect.data.options import DataOptions
from detect.data.read import read
from detect.data.transforms import Resize
from detect.errors import UserError
from detect.models import (
    RCNN,
    BoxHeadOptions,
    CropOptions,
    Detector,
    FasterRCNN,
    FasterRCNNOptions,
    FastRCNN,
    FastRCNNOptions,
    ProposalCounts,
    RCNNOptions,
    RegionHeadOptions,
    RPNOptions,
)
from detect.prediction.sources import frames
from detect.structures import Batch, Images, Proposals, Targets

RGB = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
SMOOTH = np.asarray(Image.fromarray(RGB).resize((96, 64), Image.Resampling.BICUBIC))


CORNERS = ("xmin", "ymin", "xmax", "ymax")


def encoded(image, format, **options) -> bytes:
    with io.BytesIO() as file:
        image.save(file, format, **options)
        return file.getvalue()


def voc(root: Path, images: dict[str, bytes], box=(3, 3, 12, 12)) -> Path:
    """Write a data set with one box in each image."""
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    corners = "".join(f"<{name}>{value}</{name}>" for name, value in zip(CORNERS, box, strict=True))
    for name, content in images.items():
        (root / "JPEGImages" / name).write_bytes(content)
        text = f"<annotation><object><name>cat</name><bndbox>{corners}</bndbox></object></annotation>"
        (root / "Annotations" / f"{Path(name).stem}.xml").write_text(text)
    (root / "ImageSets" / "Main" / "train.txt").write_text("\n".join(Path(name).stem for name in images))
    return root


# ---- truncated files -------------------------------------------------------------------------------------------------

FORMATS = {
    "jpg": ("JPEG", {}),
    "progressive.jpg": ("JPEG", {"progressive": True}),
    "png": ("PNG", {}),
    "webp": ("WEBP", {}),
    "gif": ("GIF", {}),
    "bmp": ("BMP", {}),
    "tif": ("TIFF", {}),
    "lzw.tif": ("TIFF", {"compression": "tiff_lzw"}),
    "ppm": ("PPM", {}),
}


def test_every_file_that_is_cut_is_found_before_the_first_step(tmp_path):
    images = {}
    for kind, (format, options) in FORMATS.items():
        content = encoded(Image.fromarray(SMOOTH), format, **options)
        for share in (0, 5, 50, 95):
            images[f"{kind.replace('.', '-')}-{share}.{kind.rpartition('.')[2]}"] = content[
                : len(content) * share // 100
            ]
    images["text.jpg"] = b"This is a letter and no photograph.\n" * 99
    planted = len(images)
    images["good.jpg"] = encoded(Image.fromarray(SMOOTH), "JPEG")
    root = voc(tmp_path, images)
    with pytest.raises(UserError, match=rf"{planted} × unreadable-image, first .*bmp-0\.bmp|{planted} × unreadable"):
        DetectionData(DataOptions(root=root, val=None))
        read(root, "train")
    left = read(root, "train", skip_unreadable=True)
    assert [record.path.name for record in left.records] == ["good.jpg"]
    assert {defect.path.name for defect in left.repaired} == set(images) - {"good.jpg"} and len(
        left.repaired
    ) == planted


# ---- the same pixels for all -----------------------------------------------------------------------------------------


def with_orientation(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


def kinds() -> dict[str, bytes]:
    """Return images of every kind; all of them can be decoded."""
    colour, grey = Image.fromarray(SMOOTH), Image.fromarray(SMOOTH).convert("L")
    palette = colour.quantize(64)
    alpha = Image.fromarray(np.dstack([SMOOTH, SMOOTH[..., :1]]))
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    made = {f"exif{value}.jpg": encoded(colour, "JPEG", exif=with_orientation(value)) for value in range(1, 9)}
    made |= {
        "grey.jpg": encoded(grey, "JPEG"),
        "cmyk.jpg": encoded(colour.convert("CMYK"), "JPEG"),
        "deep.png": encoded(deep, "PNG"),
        "deep.tif": encoded(deep, "TIFF"),
        "alpha.png": encoded(alpha, "PNG"),
        "alpha.webp": encoded(alpha, "WEBP", lossless=True),
        "greyalpha.png": encoded(alpha.convert("LA"), "PNG"),
        "palette.png": encoded(palette, "PNG"),
        "clear.png": encoded(palette, "PNG", transparency=bytes(range(64))),
        "bit.png": encoded(grey.convert("1"), "PNG"),
        "moving.gif": encoded(palette, "GIF", save_all=True, append_images=[palette.rotate(90)]),
        "moving.png": encoded(colour, "PNG", save_all=True, append_images=[colour.rotate(180)]),
        "moving.webp": encoded(colour, "WEBP", save_all=True, append_images=[colour.rotate(180)], lossless=True),
    }
    return {name.replace(".", "-") + Path(name).suffix: content for name, content in made.items()}  # VOC knows stems


def test_training_prediction_and_the_exported_model_see_the_same_pixels(tmp_path):
    root = voc(tmp_path, kinds())
    data = read(root, "train")
    assert len(data) == len(kinds()) and not data.repaired
    for index, record in enumerate(data.records):
        size = (record.height, record.width)
        item = Item(index, seed=0, resize=Resize(min(size), max(size)), canvas=size)
        sample = DetectionImages(data, None, None, {})[item]
        (frame,) = frames(record.path)  # the source of both Predictor and OnnxDetector
        (given,) = frames(record.path.read_bytes())
        np.testing.assert_array_equal(sample.image, decode(record.path))
        np.testing.assert_array_equal(frame.pixels, sample.image)
        np.testing.assert_array_equal(given.pixels, sample.image)
        np.testing.assert_array_equal(sample.boxes, [[2, 2, 12, 12]])


@pytest.mark.parametrize("value", range(1, 9))
def test_a_box_lies_on_its_object_after_the_image_is_turned(tmp_path, value):
    """Boxes refer to the upright image, as annotation tools show it: 30 × 20, with a red object at (4, 2, 14, 8)."""
    upright = np.zeros((20, 30, 3), np.uint8)
    upright[2:8, 4:14] = (255, 0, 0)
    back = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }[value]
    stored = Image.fromarray(np.ascontiguousarray(back(upright)))
    root = voc(tmp_path, {"a.png": encoded(stored, "PNG", exif=with_orientation(value))}, box=(5, 3, 14, 8))
    data = read(root, "train")
    sample = DetectionImages(data, None, None, {})[Item(0, seed=0, resize=Resize(40, 60), canvas=(40, 60))]
    (box,) = sample.boxes.astype(int).tolist()
    assert box == [8, 4, 28, 16]
    red = sample.image[..., 0] > 127
    rows, columns = np.flatnonzero(red.any(axis=1)), np.flatnonzero(red.any(axis=0))
    assert (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1) == (8, 4, 28, 16)


# ---- extreme sizes ---------------------------------------------------------------------------------------------------


def faster() -> Detector:
    counts = ProposalCounts(100, 20)
    options = FasterRCNNOptions(
        backbone=ResNetOptions(depth=18, norm="batch", train_stages=5),
        rpn=RPNOptions(anchor_sizes=(8, 16, 32, 48, 64), training=counts, testing=counts),
        box_head=BoxHeadOptions(layers=1, channels=32),
        region_head=RegionHeadOptions(batch_size_per_image=16),
    )
    return FasterRCNN(3, options)


def fast() -> Detector:
    options = FastRCNNOptions(
        backbone=ResNetOptions(18, norm="batch"),
        box_head=BoxHeadOptions(channels=32),
        region_head=RegionHeadOptions(batch_size_per_image=16, delta_weights=(10, 10, 5, 5)),
    )
    return FastRCNN(3, options)


def rcnn() -> Detector:
    options = RCNNOptions(
        backbone=ResNetOptions(18, norm="batch", train_stages=5),
        crop=CropOptions(size=40, context=4, batch_size=8),
        region_head=RegionHeadOptions(batch_size_per_image=8, delta_weights=(1, 1, 1, 1)),
    )
    return RCNN(3, options)


MODELS = {"faster": faster, "fast": fast, "rcnn": rcnn}


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (20000, 40), (40, 20000)])
def test_images_of_any_shape_are_trained_on_and_judged(tmp_path, size):
    side = min(3, *size)
    root = voc(tmp_path, {"a.png": encoded(Image.new("RGB", size), "PNG")}, box=(1, 1, max(side, 2), max(side, 2)))
    options = DataOptions(root=root, val=None, short_side=(64,), long_side=128, batch_size=1, workers=0, canvases=1)
    data = DetectionData(options)
    if not data.split("train").records[0].boxes.size:
        pytest.skip("no box fits in")
    model = faster()
    loader = data.eval_loader(data.train)
    (batch,) = loader
    losses = model.loss(batch)
    total = torch.stack(list(losses.values())).sum()
    total.backward()
    assert total.isfinite()
    found = model.eval().detect(batch.images)
    assert found.boxes.isfinite().all()
    assert batch.images.sizes.min() >= 1


# ---- rules -----------------------------------------------------------------------------------------------------------


def test_every_rule_has_a_case():
    """Each rule is violated, and named, by some test of the readers."""
    paths = (Path(__file__).parent / "data").rglob("test_*.py")
    readers = "".join(path.read_text(encoding="utf-8") for path in paths)
    readers += Path(__file__).with_name("test_hostile.py").read_text(encoding="utf-8")
    for rule in RULES:
        assert re.search(rf"(\"|× )?{rule}\b", readers), rule


# ---- batches and boxes made by a user --------------------------------------------------------------------------------


def batch_of(boxes=((5.0, 5, 30, 30), (40, 10, 70, 50)), valid=True, crowd=False) -> Batch:
    """Return two images with the same ground truths of class 0, and proposals."""
    gt_boxes = torch.tensor(boxes).reshape(1, len(boxes), 4).repeat(2, 1, 1)
    is_valid = torch.full(gt_boxes.shape[:2], valid)
    corner = torch.rand(2, 12, 2) * 30
    given = torch.ones(2, 12, dtype=torch.bool)
    return Batch(
        images=Images(torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8), torch.tensor([[64, 96], [50, 70]])),
        targets=Targets(gt_boxes, torch.zeros(gt_boxes.shape[:2], dtype=torch.long), is_valid, is_valid & crowd),
        ids=torch.arange(2),
        scales=torch.ones(2, 2),
        proposals=Proposals(torch.cat([corner, corner + 10], dim=-1), given.float(), given),
    )


@pytest.mark.parametrize("case", ["no object", "padding alone", "crowds alone"])
@pytest.mark.parametrize("kind", MODELS)
def test_batches_without_objects_teach_background(kind, case):
    model = MODELS[kind]()
    batch = {
        "no object": lambda: batch_of(boxes=()),
        "padding alone": lambda: batch_of(valid=False),
        "crowds alone": lambda: batch_of(boxes=((40.0, 40, 60, 60),), crowd=True),
    }[case]()
    batch = replace(batch, proposals=None) if model.rpn else batch
    losses = model.loss(batch)
    total = torch.stack(list(losses.values())).sum()
    total.backward()
    assert total.isfinite() and losses["classification"] > 0
    gradients = [value.grad for value in model.region_head.predictor.parameters() if value.grad is not None]
    assert any(gradient.abs().sum() > 0 for gradient in gradients)
    assert all(value.grad is None or value.grad.isfinite().all() for value in model.parameters())


BOXES_OF_USERS = """
import sys
from dataclasses import replace
import torch
sys.path.insert(0, sys.argv[1])
from test_bad_data import MODELS, batch_of
torch.set_num_threads(1)
nan, inf = float("nan"), float("inf")
for kind, make in MODELS.items():
    torch.manual_seed(0)
    model, batch = make(), batch_of()
    batch = replace(batch, proposals=None) if model.rpn else batch
    for value, places in ((nan, (0, 2)), (inf, (2,)), (1e30, (1,))):
        for place in places:
            boxes = batch.targets.boxes.clone()
            boxes[0, 0, place] = value
            losses = model.train().loss(replace(batch, targets=replace(batch.targets, boxes=boxes)))
            assert all(loss.isfinite() for loss in losses.values()), (kind, value, losses)
            if batch.proposals is None: continue
            boxes = batch.proposals.boxes.clone()
            boxes[0, 3, place] = value
            given = replace(batch.proposals, boxes=boxes)
            losses = model.loss(replace(batch, proposals=given))
            assert all(loss.isfinite() for loss in losses.values()), (kind, value, losses)
            found = model.eval().detect(batch.images, given)
            assert found.boxes[found.valid].isfinite().all(), (kind, value)
    for label in (-1, 3):
        labels = batch.targets.labels.clone()
        labels[0, 0] = label
        losses = model.train().loss(replace(batch, targets=replace(batch.targets, labels=labels)))
        assert all(loss.isfinite() for loss in losses.values()), (kind, label, losses)
print("alive")
"""


def test_boxes_and_labels_that_are_none_end_no_process():
    """Runs in a separate process: an infinite box crashes torchvision's `roi_align` with a segmentation fault."""
    folder = str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", BOXES_OF_USERS, folder], capture_output=True, text=True
    )
    assert done.stdout == "alive\n", done.stderr[-2000:]


def test_an_invalid_ground_truth_is_ignored():
    """The loss equals that of the same batch with padding in its place."""
    for kind, make in MODELS.items():
        torch.manual_seed(0)
        model, batch = make(), batch_of()
        batch = replace(batch, proposals=None) if model.rpn else batch
        boxes, labels, valid = (getattr(batch.targets, name).clone() for name in ("boxes", "labels", "valid"))
        valid[0, 0] = False
        padded = replace(batch, targets=replace(batch.targets, valid=valid, boxes=boxes))
        boxes = boxes.clone()
        boxes[0, 0, 2] = torch.nan
        broken = replace(batch, targets=replace(batch.targets, boxes=boxes))
        labels[0, 0] = -1
        unknown = replace(batch, targets=replace(batch.targets, labels=labels))
        results = []
        for one in (padded, broken, unknown):
            torch.manual_seed(1)
            results.append(model.loss(one))
        for result in results[1:]:
            torch.testing.assert_close(result, results[0], msg=lambda text, kind=kind: f"{kind}: {text}")


def test_labels_of_files_that_are_no_class_are_refused(tmp_path):
    """A reader never returns labels of −1 or ≥ C: a class of a file is one of `classes`, or it is refused."""
    root = voc(tmp_path, {"a.png": encoded(Image.new("RGB", (20, 20)), "PNG")})
    for classes in ((), ("dog",), ("dog", "bird")):
        with pytest.raises(UserError, match=r"1 × unknown-class, first .*a\.xml: object 1 \(cat\)"):
            read(root, "train", classes=classes)
    assert Counter(read(root, "train", classes=("dog", "cat")).records[0].labels.tolist()) == {1: 1}
