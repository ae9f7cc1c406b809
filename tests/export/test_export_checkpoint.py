import json
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import detect
from detect.backbones import FeatureInfo, ResNetOptions, TimmOptions
from detect.checkpoint import Checkpoint, load_checkpoint
from detect.cli.export import _outcome
from detect.config import Config, config_from_dict
from detect.curation.shapes import make_shapes
from detect.data.options import DataOptions
from detect.errors import UserError
from detect.export import equality
from detect.export import export_checkpoint as exporting
from detect.export.equality import Equality, check_equality
from detect.export.export_checkpoint import export_checkpoint
from detect.export.exportable import letterbox
from detect.export.sample_images import has_data, sample_images, synthetic_images
from detect.models import (
    BoxHeadOptions,
    FasterRCNNOptions,
    FastRCNNOptions,
    PoolingOptions,
    PostprocessOptions,
    ProposalCounts,
    RCNNOptions,
    RPNOptions,
    build_detector,
)
from detect.models.region_pooling import RegionPooling
from detect.ops.nms import nms
from detect.ops.roi_align import multilevel_roi_align
from detect.prediction.onnx_detector import OnnxDetector
from detect.prediction.predictor import Predictor
from detect.prediction.result import Result

CLASSES, IDS = ("cat", "dog", "cow"), (3, 5, 8)
DATA = DataOptions(root=Path("nowhere"), short_side=(64, 96), long_side=160)


def made(backbone, anchor_sizes, **options) -> Checkpoint:
    """An untrained detector with many detections."""
    torch.manual_seed(0)
    counts = ProposalCounts(100, 20)
    config = Config(
        FasterRCNNOptions(
            backbone=backbone,
            rpn=RPNOptions(anchor_sizes=anchor_sizes, training=counts, testing=counts),
            box_head=BoxHeadOptions(layers=1, channels=32),
            postprocess=PostprocessOptions(score_threshold=0.3),
            **options,
        ),
        DATA,
    )
    model = build_detector(config.model, len(CLASSES)).eval()
    nn.init.normal_(model.region_head.predictor.scores.weight, std=0.05)  # not so large that scores are equal
    return Checkpoint(model, config, CLASSES, IDS)


@cache
def checkpoint() -> Checkpoint:
    backbone = ResNetOptions(depth=18, norm="batch")
    return made(backbone, (16, 32, 64), neck=None, pooling=PoolingOptions(aligned=True))


@cache
def traced():
    return exporting.trace(checkpoint())


@pytest.fixture
def traced_once(unchecked, monkeypatch):
    """Trace once: tracing is slow, and the program is the same for both formats."""
    program = traced()
    monkeypatch.setattr(exporting, "trace", lambda checkpoint: program)


def random_images(*sizes):
    rng = np.random.default_rng(0)
    coarse = [rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8) for height, width in sizes]
    images = [image.repeat(8, 0).repeat(8, 1) for image in coarse]
    return [image[:height, :width] for image, (height, width) in zip(images, sizes, strict=True)]


@cache
def _exported(path: Path) -> Equality | None:
    return export_checkpoint(checkpoint(), path, "onnx", random_images((80, 100), (150, 120), (80, 100)))


@pytest.fixture
def exported(traced_once, tmp_path_factory) -> tuple[Path, Equality | None]:
    """Export once for all tests, as it is slow."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    path = tmp_path_factory.getbasetemp() / "exported.onnx"
    return path, _exported(path)


# ---- ONNX ------------------------------------------------------------------------------------------------------------


def test_onnx_detections_equal_the_checkpoints(exported):
    _, comparison = exported
    assert (comparison.images, comparison.batches) == (3, 1) and comparison.detections > 20
    assert comparison.score_difference < 1e-4 and comparison.iou > 0.999


def test_onnx_detections_in_images_of_other_sizes(exported):
    path, _ = exported
    sizes = [(192, 192), (97, 96), (40, 300), (33, 17), (1, 1), (288, 320)]
    comparison = check_equality(Predictor(checkpoint()), OnnxDetector(path), random_images(*sizes))
    assert comparison.images == 6 and comparison.detections > 20


@pytest.mark.parametrize("batch_size", [1, 3])
def test_onnx_detections_in_batches(exported, batch_size):
    images = random_images(*[(70, 90)] * 4)
    ours, theirs = (
        list(model.predict(images, batch_size=batch_size, score=0.35))
        for model in (Predictor(checkpoint()), OnnxDetector(exported[0]))
    )
    assert sum(map(len, ours)) > 4 and [len(one) for one in ours] == [len(one) for one in theirs]
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(other.boxes, one.boxes, atol=1e-2)
        np.testing.assert_allclose(other.scores, one.scores, atol=1e-4)
        np.testing.assert_array_equal(other.labels, one.labels)


def test_onnx_metadata(exported):
    onnx = pytest.importorskip("onnx")
    path, _ = exported
    model = onnx.load(path)
    known = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    assert (known["classes"], known["category_ids"]) == (list(CLASSES), list(IDS))
    assert (known["short_side"], known["long_side"], known["score"]) == (96, 160, 0.3)
    assert config_from_dict(known["config"], "metadata") == checkpoint().config
    assert known["versions"]["torch"] == version("torch")
    assert [one.name for one in model.graph.input] == ["images"]
    assert [one.name for one in model.graph.output] == ["boxes", "scores", "labels", "count"]
    assert str(Path(detect.__file__).parent).encode() not in path.read_bytes()


def test_onnx_axes_have_names(exported):
    onnx = pytest.importorskip("onnx")
    graph = onnx.load(exported[0]).graph
    axes = {
        value.name: [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }
    assert axes == {
        "images": ["batch", "height", "width", 3],
        "boxes": ["batch", "detections", 4],
        "scores": ["batch", "detections"],
        "labels": ["batch", "detections"],
        "count": ["batch"],
    }


def test_onnx_has_only_standard_operators_and_no_batch_norms(exported):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(exported[0])
    assert {node.domain for node in model.graph.node} == {""} and not model.functions
    kinds = [node.op_type for node in model.graph.node]
    assert "BatchNormalization" not in kinds
    assert (kinds.count("RoiAlign"), kinds.count("NonMaxSuppression")) == (1, 1 + 1)


def test_load_reads_the_file(exported):
    model = detect.load(exported[0])
    assert isinstance(model, OnnxDetector) and model.classes == CLASSES and model.score == 0.3


@pytest.fixture
def operators(unchecked, tmp_path_factory):
    """Run the custom operators alone, exported to ONNX."""
    pytest.importorskip("onnxscript")
    path = tmp_path_factory.getbasetemp() / "operators.onnx"
    return _operators(path)


class Operators(nn.Module):
    def forward(self, images, boxes, valid, groups, fine, coarse, levels):
        pooled = [
            multilevel_roi_align([fine, coarse], [1, 2], boxes, levels, 3, ratio, aligned)
            for ratio, aligned in ((2, False), (0, True))
        ]
        rounded = RegionPooling([FeatureInfo(5, 1)], 3, PoolingOptions(kind="pool"))([fine], boxes)
        return *letterbox(images, 40, 64), nms(boxes, valid, 0.5, groups), *pooled, rounded


def inputs(height=30, width=50, boxes=40, images=2):
    rng = torch.Generator().manual_seed(height)
    corners = torch.rand(images, boxes, 2, 2, generator=rng).sort(dim=2).values * 20
    return (
        torch.randint(0, 256, (images, height, width, 3), dtype=torch.uint8, generator=rng),
        corners.flatten(2),
        torch.rand(images, boxes, generator=rng) < 0.8,
        torch.randint(0, 3, (images, boxes), generator=rng),
        torch.randn(images, 5, 20, 20, generator=rng),
        torch.randn(images, 5, 10, 10, generator=rng),
        torch.randint(0, 2, (images, boxes), generator=rng),
    )


@cache
def _operators(path: Path):
    import onnxruntime
    from torch.export import Dim

    from detect.export.onnx_operators import OPSET, translations

    batch, count = Dim("batch"), Dim("count")
    boxes = {0: batch, 1: count}
    shapes = ({0: batch, 1: Dim("height"), 2: Dim("width")}, boxes, boxes, boxes, {0: batch}, {0: batch}, boxes)
    with torch.no_grad(), exporting.quiet():
        exported = torch.onnx.export(
            Operators().eval(),
            inputs(),
            dynamo=True,
            opset_version=OPSET,
            custom_translation_table=translations(),
            dynamic_shapes=shapes,
            verbose=False,
        )
    exported.save(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    return lambda *values: session.run(None, {n: v.numpy() for n, v in zip(names, values, strict=True)})


# Enlarged, unchanged, shrunk by 2 × 2, 3 × 3, 4 × 4, one side only, one pixel wide, limited by the long side.
SIZES = [
    (30, 50),
    (40, 40),
    (40, 64),
    (80, 80),
    (120, 120),
    (160, 200),
    (41, 40),
    (40, 65),
    (33, 77),
    (101, 90),
    (1, 9),
]


@pytest.mark.parametrize("size", [*SIZES, (300, 1), (97, 400)])
def test_resizing_is_bit_identical_to_opencv(operators, size):
    given = inputs(*size)
    for ours, theirs in zip(letterbox(given[0], 40, 64), operators(*given), strict=False):
        np.testing.assert_array_equal(theirs, ours.numpy(), strict=True)


def test_nms_keeps_the_same_boxes(operators):
    given = inputs()
    kept = nms(*given[1:3], 0.5, given[3])
    assert 10 < kept.sum() < given[2].sum()
    np.testing.assert_array_equal(operators(*given)[3], kept.numpy(), strict=True)


def test_pooled_regions_are_the_same(operators):
    *_, pooled, finely, rounded = operators(*inputs())
    _, boxes, _, _, fine, coarse, levels = inputs()
    for theirs, ratio, aligned in ((pooled, 2, False), (finely, 0, True)):
        ours = multilevel_roi_align([fine, coarse], [1, 2], boxes, levels, 3, ratio, aligned)
        np.testing.assert_allclose(theirs, ours.numpy(), atol=1e-5)
    ours = RegionPooling([FeatureInfo(5, 1)], 3, PoolingOptions(kind="pool"))([fine], boxes)
    np.testing.assert_array_equal(rounded, ours.numpy(), strict=True)


def test_a_level_without_regions_and_no_valid_box(operators):
    given = list(inputs())
    given[2], given[6] = torch.zeros_like(given[2]), torch.zeros_like(given[6])
    *_, kept, pooled, _, _ = operators(*given)
    assert not kept.any()
    ours = multilevel_roi_align([given[4], given[5]], [1, 2], given[1], given[6], 3)
    np.testing.assert_allclose(pooled, ours.numpy(), atol=1e-5)


# ---- the other formats -----------------------------------------------------------------------------------------------


def test_torch_export_detections_equal_the_checkpoints(tmp_path, traced_once):
    out = tmp_path / "new" / "a.pt2"
    comparison = export_checkpoint(checkpoint(), out, "torch-export", random_images((80, 100), (150, 120)))
    assert (comparison.images, comparison.batches) == (2, 1) and comparison.detections > 5
    files = {"classes.json": ""}
    program = torch.export.load(out, extra_files=files).module()
    assert json.loads(files["classes.json"]) == list(CLASSES)
    boxes, scores, labels, count = program(torch.from_numpy(np.stack(random_images(*[(70, 60)] * 3))))
    assert boxes.shape[0] == scores.shape[0] == 3 and count.shape == (3,) and labels.dtype == torch.int64
    padded = torch.arange(boxes.shape[1]) >= count[:, None]
    assert padded.any() and not (boxes[padded].any() or scores[padded].any() or labels[padded].any())
    assert [path.name for path in out.parent.iterdir()] == ["a.pt2"]


def test_an_export_tells_its_steps(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(exporting, "trace", lambda checkpoint: None)
    ours = result((0, 0.9, 0))
    monkeypatch.setattr(exporting, "_write_pt2", lambda *_: lambda batch: [ours for _ in batch])
    monkeypatch.setattr(Predictor, "predict", lambda self, batch, **options: iter([ours] * len(batch)))
    export_checkpoint(checkpoint(), tmp_path / "a.pt2", "torch-export", random_images((20, 20)))
    assert [line.split()[0] for line in capsys.readouterr().err.splitlines()] == ["tracing", "writing", "comparing"]


def test_safetensors_are_a_checkpoint(tmp_path):
    pytest.importorskip("safetensors")
    given, out = checkpoint(), tmp_path / "a.safetensors"
    assert export_checkpoint(given, out, "safetensors", []) is None
    loaded = load_checkpoint(out)
    assert (loaded.classes, loaded.category_ids, loaded.config) == (CLASSES, IDS, given.config)
    before, after = given.model.state_dict(), loaded.model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    assert load_checkpoint(out, ["--model.postprocess.score_threshold=0.6"]).model.postprocessing.score_threshold == 0.6
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
    (tmp_path / "new").touch()
    assert out.stat().st_mode == (tmp_path / "new").stat().st_mode


def test_a_file_that_reads_back_differently_is_named_and_not_kept(tmp_path, monkeypatch):
    pytest.importorskip("safetensors")
    monkeypatch.setattr(exporting.torch, "equal", lambda *_: False)
    with pytest.raises(UserError) as caught:
        export_checkpoint(checkpoint(), tmp_path / "a.safetensors", "safetensors", [])
    assert str(caught.value).startswith(f"{tmp_path / 'a.safetensors'}: the weights read back from the file differ")
    assert not list(tmp_path.iterdir())


def test_safetensors_of_other_programs_are_refused(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").write_bytes(b"nothing")
    for name in ("a", "b"):
        with pytest.raises(UserError, match=f"{name}.safetensors: not a checkpoint of detect"):
            load_checkpoint(tmp_path / f"{name}.safetensors")
    with pytest.raises(UserError, match="No such file"):
        load_checkpoint(tmp_path / "c.safetensors")


# ---- refused checkpoints ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [partial(FastRCNNOptions, neck=None), RCNNOptions])
def test_detectors_that_need_selective_search_are_refused(options, tmp_path):
    config = Config(options(backbone=ResNetOptions(depth=18, norm="batch")), DATA)
    given = Checkpoint(build_detector(config.model, 3), config, CLASSES, IDS)
    with pytest.raises(UserError, match="selective search"):
        export_checkpoint(given, tmp_path / "a.onnx", "onnx", random_images((20, 20)))
    assert not list(tmp_path.iterdir())


def test_a_swin_is_refused_before_it_is_traced(tmp_path):
    pytest.importorskip("timm", reason="timm is an extra")
    backbone = TimmOptions("swin_tiny_patch4_window7_224")
    with torch.device("meta"):
        model = build_detector(FasterRCNNOptions(backbone=backbone), 3)
    given = Checkpoint(model, Config(FasterRCNNOptions(backbone=backbone), DATA), CLASSES, IDS)
    with pytest.raises(UserError, match=r"^--format onnx: swin_tiny_patch4_window7_224 takes too long to trace"):
        export_checkpoint(given, tmp_path / "a.onnx", "onnx", [])


def test_other_suffixes_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"ends in \.onnx"):
        export_checkpoint(checkpoint(), tmp_path / "a.pt2", "onnx", [])


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match=r"onnxscript not installed: pip install 'rcnn-family\[onnx\]'"):
        export_checkpoint(checkpoint(), tmp_path / "a.onnx", "onnx", [])


# ---- the equality check ----------------------------------------------------------------------------------------------


def result(*rows):
    """Make a result from rows of label, score and left border."""
    boxes = [[left, 0, left + 100, 100] for _, _, left in rows]
    labels, scores = [row[0] for row in rows], [row[1] for row in rows]
    return Result(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(scores, np.float32),
        np.array(labels, np.int64),
        CLASSES,
        IDS,
        (200, 200),
    )


@pytest.mark.parametrize(
    "theirs",
    [
        [],
        [(0, 0.9, 0)],
        [(1, 0.9, 0), (0, 0.8, 50)],
        [(0, 0.9002, 0), (0, 0.8, 50)],
        [(0, 0.9, 0.2), (0, 0.8, 50)],
        [(0, 0.9, 0), (0, 0.9, 0), (0, 0.8, 50)],
        [(0, 0.9, 0), (0, 0.8, 50), (0, 0.302, 50)],
    ],
)
def test_different_detections_leave_no_file(theirs, tmp_path, monkeypatch):
    def write(checkpoint, program, path):
        path.write_bytes(b"model")
        return lambda batch: [result(*theirs) for _ in batch]

    ours = result((0, 0.9, 0), (0, 0.8, 50))
    monkeypatch.setattr(exporting, "trace", lambda checkpoint: None)
    monkeypatch.setattr(exporting, "_write_pt2", write)
    monkeypatch.setattr(Predictor, "predict", lambda self, batch, **options: [ours for _ in batch])
    with pytest.raises(UserError, match="has no match; no file was written") as error:
        export_checkpoint(checkpoint(), tmp_path / "a.pt2", "torch-export", random_images((20, 20)))
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_differences_within_the_bounds(monkeypatch):
    ours = result((0, 0.9, 0), (0, 0.8, 50), (1, 0.30005, 0))  # the last is close to the score threshold
    theirs = result((0, 0.90005, 0), (0, 0.8, 50.02))
    monkeypatch.setattr(Predictor, "predict", lambda self, batch, **options: [ours for _ in batch])
    comparison = check_equality(Predictor(checkpoint()), lambda batch: [theirs for _ in batch], random_images((20, 20)))
    assert (comparison.images, comparison.batches, comparison.detections) == (1, 1, 3 + 2 * 3)
    assert comparison.score_difference == pytest.approx(5e-5, rel=1e-2)
    assert comparison.iou == pytest.approx(99.98 / 100.02, rel=1e-5)


def test_pairs_are_of_one_size():
    a, b, c, d = random_images((20, 30), (30, 20), (20, 30), (20, 30))
    (pair,) = equality._pairs([a, b, c, d])
    assert pair[0] is a and pair[1] is c
    ((one, mirrored),) = equality._pairs([b])
    assert one is b and np.array_equal(mirrored, b[:, ::-1])


def test_sample_images_of_a_split(tmp_path):
    make_shapes(tmp_path / "shapes", images={"train": 1, "val": 25}, size=(64, 80), progress=False)
    config = Config(data=DataOptions(root=tmp_path / "shapes"))
    classes = ("circle", "square", "triangle", "ring")
    assert has_data(config) and not has_data(Config(data=DATA))
    assert len(sample_images(config, None, classes)) == 20
    (only,) = sample_images(config, "train", classes)
    assert only.dtype == np.uint8 and only.shape[2] == 3
    assert all(image.dtype == np.uint8 for image in synthetic_images())


def test_a_file_that_cannot_be_written_fails_before_the_export(tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "trace", None)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"a\.onnx: cannot be written: .*; choose another file with --out"):
        export_checkpoint(checkpoint(), tmp_path / "file" / "a.onnx", "onnx", [])


def test_a_check_of_no_boxes_says_so():
    """A detector that detects nothing yet equals any other that detects nothing."""
    none = Equality(images=6, batches=1, detections=0, score_difference=0.0, iou=1.0)
    assert _outcome(none).startswith("neither the checkpoint nor the file detects anything in 6 images and 1 batch of")
    some = Equality(images=6, batches=2, detections=9, score_difference=2e-7, iou=1.0)
    assert _outcome(some) == (
        "same detections as the checkpoint: 9 in 6 images and 2 batches of two; scores differ by at most 2e-07, "
        "IoU is at least 1.00000"
    )
