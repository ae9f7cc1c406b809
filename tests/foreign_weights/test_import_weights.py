"""A file of another project becomes a checkpoint that loads like any other, or is refused with a one-line message."""

import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.models.detection import fasterrcnn_resnet50_fpn

from detect.checkpoint import load_checkpoint
from detect.errors import UserError
from detect.foreign_weights.coco_names import COCO_NAMES
from detect.foreign_weights.detectron2 import detector_from_detectron2
from detect.foreign_weights.import_weights import class_names, import_weights
from detect.foreign_weights.state_dicts import leave_out, read_content, state_dict


@pytest.fixture(scope="module")
def state(detectron2_resnet18):
    return detectron2_resnet18(classes=80)


@pytest.fixture(scope="module")
def expected(state):
    return detector_from_detectron2(state).state_dict()


def as_arrays(state):
    return {key: value.numpy() for key, value in state.items()}


def write(kind, state, folder):
    """Write a state dict in a format of detectron2."""
    path = folder / {"zoo": "model_final.pkl", "training": "model_final.pth", "alone": "model.pth"}[kind]
    if kind == "zoo":
        content = {"model": as_arrays(state), "__author__": "Detectron2 Model Zoo"}
        path.write_bytes(pickle.dumps(content, protocol=3))
    elif kind == "training":
        more = {"optimizer": {"state": {0: {"momentum_buffer": torch.zeros(3)}}}, "scheduler": {}, "iteration": 89999}
        torch.save({"model": state, **more}, path)
    else:
        torch.save(state, path)
    return path


@pytest.mark.parametrize("kind", ["zoo", "training", "alone"])
def test_detectron2s_files_become_checkpoints(kind, state, expected, tmp_path):
    keypoints = {"roi_heads.keypoint_head.conv_fcn1.weight": torch.zeros(80, 2, 1, 1)}
    out = tmp_path / "new" / "detectron2.ckpt"
    imported = import_weights("detectron2", write(kind, state | keypoints, tmp_path), out)
    checkpoint = load_checkpoint(out)
    assert checkpoint.classes == tuple(COCO_NAMES.values()) and checkpoint.category_ids == tuple(COCO_NAMES)
    assert (checkpoint.config.data.short_side, checkpoint.config.data.long_side) == ((800,), 1333)
    written = checkpoint.model.state_dict()
    assert written.keys() == expected.keys() and all(
        torch.equal(value, written[key]) for key, value in expected.items()
    )

    rows = {part: (int(tensors), int(numbers.replace(",", ""))) for part, tensors, numbers, _ in imported.rows()}
    assert list(rows) == ["backbone", "neck", "RPN", "box head", "classes and boxes", "keypoint head"]
    levels = (64, 128, 256, 512)
    assert rows["neck"] == (4 * 4, sum(16 * channels + 16 + 16 * 16 * 9 + 16 for channels in levels))
    assert rows["RPN"] == (6, 16 * 16 * 9 + 16 + 3 * 17 + 12 * 17)
    assert rows["box head"] == (4, 8 * 16 * 49 + 8 + 8 * 8 + 8)
    assert rows["classes and boxes"] == (4, 81 * 9 + 320 * 9)
    assert rows["keypoint head"] == (1, 160)
    assert "--style torchvision" in imported.note


def test_nothing_is_assumed_if_the_file_or_the_user_gives_the_style(state, tmp_path):
    normalised = state | {"pixel_mean": torch.tensor([103.53, 116.28, 123.675]), "pixel_std": torch.ones(3)}
    assert import_weights("detectron2", write("alone", normalised, tmp_path), tmp_path / "a.ckpt").note == ""
    file = write("alone", state, tmp_path)
    assert import_weights("detectron2", file, tmp_path / "b.ckpt", style="torchvision").note == ""
    assert load_checkpoint(tmp_path / "b.ckpt").model.backbone.std.tolist() == pytest.approx([58.395, 57.12, 57.375])


def test_torchvisions_file_becomes_a_checkpoint(tmp_path):
    with torch.device("meta"):
        network = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91)
    shapes = {key: value.shape for key, value in network.state_dict().items() if value.ndim}
    theirs = {key: torch.rand(shape) for key, shape in shapes.items()}
    keypoints = {
        "roi_heads.keypoint_head.0.weight": torch.zeros(2, 3),
        "roi_heads.keypoint_predictor.kps_score_lowres.bias": torch.ones(1),
    }
    torch.save(theirs | keypoints, tmp_path / "keypoints.pth")
    imported = import_weights("torchvision", tmp_path / "keypoints.pth", tmp_path / "out.ckpt")
    assert imported.rows()[-1][:3] == ("keypoint head", "2", "7") and "--frozen-eps 1e-5" in imported.note
    given = import_weights("torchvision", tmp_path / "keypoints.pth", tmp_path / "eps.ckpt", frozen_eps=1e-5)
    norm = "backbone.body.stem.bn1.weight"
    one, other = (done.checkpoint.model.state_dict()[norm] for done in (imported, given))
    assert given.note == "" and (one > other).all()  # a smaller eps makes larger weights
    checkpoint = load_checkpoint(tmp_path / "out.ckpt")
    assert checkpoint.category_ids == tuple(range(1, 91))
    assert (checkpoint.classes[0], checkpoint.classes[11], checkpoint.classes[89]) == (
        "person",
        "unused 12",
        "toothbrush",
    )
    written = checkpoint.model.state_dict()
    assert torch.equal(written["backbone.body.stem.conv1.weight"], theirs["backbone.body.conv1.weight"])
    scores = theirs["roi_heads.box_predictor.cls_score.bias"]
    assert torch.equal(written["region_head.predictor.scores.bias"], torch.cat([scores[1:], scores[:1]]))


# ---- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("project", ["torchvision", "detectron2"])
def test_80_classes_have_the_names_of_coco(project):
    names, ids = class_names(project, 80)
    assert (names[0], names[-1], ids[0], ids[-1]) == ("person", "toothbrush", 1, 90)
    assert len(set(names)) == len(set(ids)) == 80 and dict(zip(ids, names, strict=True)) == COCO_NAMES


def test_90_classes_of_torchvision_have_the_ids_of_coco():
    names, ids = class_names("torchvision", 90)
    assert ids == tuple(range(1, 91)) and len(set(names)) == 90
    unused = [number for number, name in zip(ids, names, strict=True) if name == f"unused {number}"]
    assert unused == [12, 26, 29, 30, 45, 66, 68, 69, 71, 83]
    assert class_names("detectron2", 90)[0][11] == "class 11"


def test_other_counts_have_numbers_or_the_given_names(tmp_path):
    assert class_names("detectron2", 1) == (("class 0",), (1,))
    assert class_names("detectron2", 2, ["red", "white"]) == (("red", "white"), (1, 2))
    (tmp_path / "names.txt").write_text("red cell\n\n white cell \n", encoding="utf-8")
    assert class_names("detectron2", 2, [str(tmp_path / "names.txt")]) == (("red cell", "white cell"), (1, 2))
    assert class_names("torchvision", 1, ["one"]) == (("one",), (1,))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a"], "--names: 1 names for 2 classes"),
        (["a", "b", "c"], "--names: 3 names for 2 classes"),
        (["a", "a"], "--names: 'a' is given twice"),
    ],
)
def test_mismatched_names_are_refused(names, message):
    with pytest.raises(UserError, match=message):
        class_names("detectron2", 2, names)


def test_a_names_file_that_is_not_text_is_refused(tmp_path):
    (tmp_path / "names.txt").write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(UserError, match=r"names\.txt: not a readable text file"):
        class_names("detectron2", 2, [str(tmp_path / "names.txt")])


# ---- refused files --------------------------------------------------------------------------------------------------


class Command:
    """Object that is pickled as a function call."""

    def __reduce__(self):
        return os.system, ("touch executed",)


def test_a_pth_with_code_is_refused_and_nothing_is_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": {"weight": torch.zeros(1)}, "extra": Command()}, "trained.pth")
    torch.save(
        {"model": {"weight": torch.zeros(1)}, "extra": Command()}, "old.pth", _use_new_zipfile_serialization=False
    )
    for name in ("trained.pth", "old.pth"):
        with pytest.raises(
            UserError, match=rf"{name}: would call \w+\.system; give a file with only a state dict"
        ) as error:
            import_weights("detectron2", Path(name), tmp_path / "out.ckpt")
        assert "\n" not in str(error.value)
    assert not Path("executed").exists() and not (tmp_path / "out.ckpt").exists()
    torch.load("trained.pth", weights_only=False)
    assert Path("executed").exists()  # so the files are really malicious


def test_a_zip_bomb_is_refused(tmp_path):
    torch.save({"weight": torch.zeros(10**6)}, tmp_path / "plain.pth")
    with (
        zipfile.ZipFile(tmp_path / "plain.pth") as plain,
        zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for entry in plain.namelist():
            bomb.writestr(entry, plain.read(entry))
    assert (tmp_path / "bomb.pth").stat().st_size < 10**5
    with pytest.raises(UserError, match=r"bomb\.pth: unpacks to more than its size"):
        read_content(tmp_path / "bomb.pth")


def test_a_tensor_that_claims_more_than_its_file_is_refused(tmp_path):
    torch.save({"weight": torch.zeros(4)}, tmp_path / "plain.pth")
    with zipfile.ZipFile(tmp_path / "plain.pth") as plain, zipfile.ZipFile(tmp_path / "claims.pth", "w") as claims:
        for entry in plain.namelist():
            content = plain.read(entry)
            if entry.endswith("data.pkl"):
                assert b"K\x04\x85" in content  # the shape, (4,)
                content = content.replace(b"K\x04\x85", b"J\x00\x00\x00\x10\x85")
            claims.writestr(entry, content)
    with pytest.raises(UserError, match=r"claims\.pth: unreadable weights"):
        read_content(tmp_path / "claims.pth")


@pytest.mark.parametrize("part", [0, 0.5, 0.9])
@pytest.mark.parametrize("kind", ["zoo", "alone"])
def test_a_truncated_file_is_refused(kind, part, tmp_path):
    path = write(kind, {"weight": torch.rand(1000)}, tmp_path)
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    with pytest.raises(UserError, match=rf"{path.name}: (not a pickle|unreadable weights)") as error:
        read_content(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(1)], "has no state dict"),
        ({}, "has no state dict"),
        ({"model": {}}, "has no state dict"),
        ({"weight": 3}, "'weight' is not a dense tensor"),
        ({"weight": torch.zeros(2, dtype=torch.complex64)}, "'weight' is not a dense tensor"),
        ({"weight": torch.empty(2, device="meta")}, "'weight' is not a dense tensor"),
        ({"model": {"weight": torch.zeros(2)}}, "weights.pth: proposal_generator.* no RPN"),
    ],
)
def test_other_content_is_refused(content, message, tmp_path):
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=message) as error:
        import_weights("detectron2", tmp_path / "weights.pth", tmp_path / "out.ckpt")
    assert "\n" not in str(error.value) and not (tmp_path / "out.ckpt").exists()


def test_nested_dicts_are_not_followed(tmp_path):
    ring = {}
    ring["model"] = ring
    path = tmp_path / "weights.pkl"
    path.write_bytes(pickle.dumps(ring))
    with pytest.raises(UserError, match=r"weights\.pkl: 'model' is not a dense tensor"):
        state_dict(read_content(path), path)
    wide = {}
    for _ in range(64):
        wide = {"a": wide, "b": wide}  # 2^64 dicts, if each were followed
    path.write_bytes(pickle.dumps(wide))
    with pytest.raises(UserError, match="'a' is not a dense tensor"):
        state_dict(read_content(path), path)


def test_an_array_with_many_names_is_stored_once(tmp_path):
    array = np.ones(1000, np.float32)
    path = tmp_path / "weights.pkl"
    path.write_bytes(pickle.dumps({"model": {f"name {number}": array for number in range(10)}}))
    state = state_dict(read_content(path), path)
    assert len(state) == 10 and len({value.data_ptr() for value in state.values()}) == 1


def test_a_backbone_is_refused(tmp_path):
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps({"conv1_w": np.zeros((64, 3, 7, 7), np.float32)}))
    with pytest.raises(UserError, match="no RPN; give a Faster, Mask or Cascade R-CNN of detectron2"):
        import_weights("detectron2", tmp_path / "R-50.pkl", tmp_path / "out.ckpt")


def test_invalid_arguments_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"none\.pth: no such file"):
        import_weights("detectron2", tmp_path / "none.pth", tmp_path / "out.ckpt")
    with pytest.raises(UserError, match="--style: caffe2; only detectron2 has styles"):
        import_weights("torchvision", tmp_path / "none.pth", tmp_path / "out.ckpt", style="caffe2")
    (tmp_path / "out.ckpt").touch()
    with pytest.raises(UserError, match=r"out\.ckpt: this exists already"):
        import_weights("detectron2", tmp_path / "none.pth", tmp_path / "out.ckpt")
    for out, message in (("out.ckpt/x.ckpt", "a part of this path is a file"), ("x" * 300, "too long")):
        with pytest.raises(UserError, match=message):
            import_weights("detectron2", tmp_path / "none.pth", tmp_path / out)
    with pytest.raises(UserError, match=r"--frozen-eps: 0\.0; detectron2's epsilon is fixed"):
        import_weights("detectron2", tmp_path / "none.pth", tmp_path / "new.ckpt", frozen_eps=0.0)


# ---- reading ---------------------------------------------------------------------------------------------------------


def test_every_file_format_gives_the_same_numbers(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    tensors = {"weight": torch.rand(3, 4), "count": torch.tensor(7), "none": torch.zeros(0, 2)}
    safetensors.save_file(tensors, tmp_path / "model.safetensors")
    files = [write(kind, tensors, tmp_path) for kind in ("zoo", "training", "alone")]
    for path in [*files, tmp_path / "model.safetensors"]:
        read = state_dict(read_content(path), path)
        assert read.keys() == tensors.keys()
        for key, value in tensors.items():
            torch.testing.assert_close(read[key], value, rtol=0, atol=0)


def test_left_out_tensors_are_counted():
    state = {"a.weight": torch.zeros(2, 3), "a.bias": torch.zeros(2), "b": torch.zeros(4), "ca.": torch.zeros(1)}
    kept, left_out = leave_out(state, {r"a\.": ("A", "for the test"), r"d\.": ("D", "not there")})
    assert list(kept) == ["b", "ca."]
    assert [(one.name, one.reason, one.tensors, one.numbers) for one in left_out] == [("A", "for the test", 2, 8)]
