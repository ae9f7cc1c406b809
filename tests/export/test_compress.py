"""Compressed checkpoints load like any other, and at full rank give the same detections."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torchvision.models import resnet18

from detect.backbones import ResNetOptions
from detect.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from detect.cli import main
from detect.config import Config, config_from_dict
from detect.curation.propose import propose
from detect.curation.shapes import SHAPES, make_shapes
from detect.data.options import DataOptions
from detect.errors import UserError
from detect.export.compress import compress, count_parameters, time_heads
from detect.models import (
    BoxHeadOptions,
    FasterRCNNOptions,
    FastRCNNOptions,
    PostprocessOptions,
    ProposalCounts,
    RCNNOptions,
    RegionHeadOptions,
    RPNOptions,
    build_detector,
)
from detect.prediction.prepare import prepare
from detect.structures import Images, Proposals

NETWORK = ResNetOptions(depth=18, norm="batch", train_stages=5)
HEAD = BoxHeadOptions(layers=2, channels=32)
COUNTS = ProposalCounts(100, 20)
MODELS = {
    "faster_rcnn": FasterRCNNOptions(
        backbone=NETWORK,
        rpn=RPNOptions(anchor_sizes=(8, 16, 32, 48, 64), training=COUNTS, testing=COUNTS),
        box_head=HEAD,
        postprocess=PostprocessOptions(score_threshold=0.01),
    ),
    "fast_rcnn": FastRCNNOptions(
        # Without normalised deltas, whose statistics are measured in training.
        backbone=NETWORK,
        box_head=HEAD,
        region_head=RegionHeadOptions(batch_size_per_image=16),
        postprocess=PostprocessOptions(score_threshold=0.01),
    ),
}
FULL = (32, 32)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shapes"
    return make_shapes(folder, images={"train": 1, "val": 3}, size=(64, 96), progress=False)


@pytest.fixture(scope="module")
def store(shapes, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("proposals") / "shapes.db"
    propose([str(shapes)], path, processes=1)
    return path


@pytest.fixture(scope="module")
def checkpoints(shapes, store) -> dict[str, Checkpoint]:
    """Untrained detectors with different scores."""
    made = {}
    for name, options in MODELS.items():
        torch.manual_seed(0)
        data = DataOptions(root=shapes, short_side=(64,), long_side=96, workers=0, max_proposals=40)
        data = replace(data, proposals=None if name == "faster_rcnn" else store)
        model = build_detector(options, len(SHAPES)).eval()
        torch.nn.init.normal_(model.region_head.predictor.scores.weight, std=0.3)
        made[name] = Checkpoint(model, Config(model=options, data=data), SHAPES, tuple(range(1, len(SHAPES) + 1)))
    return made


def inputs(name: str) -> tuple[Images, Proposals | None]:
    images = Images(torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8), torch.tensor([[64, 96]]))
    corner = torch.rand(1, 12, 2) * 40
    boxes = torch.cat([corner, corner + 4 + torch.rand(1, 12, 2) * 20], dim=-1)
    valid = torch.ones(1, 12, dtype=torch.bool)
    return images, None if name == "faster_rcnn" else Proposals(boxes, valid.float(), valid)


@pytest.mark.parametrize("name", MODELS)
def test_at_full_rank_the_detections_are_equal(name, checkpoints, tmp_path):
    whole = checkpoints[name]
    save_checkpoint(compress(whole, FULL), tmp_path / "svd.ckpt")
    loaded = load_checkpoint(tmp_path / "svd.ckpt")
    assert loaded.config.model == replace(MODELS[name], svd=FULL) and loaded.config.data == whole.config.data
    assert (loaded.classes, loaded.category_ids) == (whole.classes, whole.category_ids)
    given = inputs(name)
    one, other = whole.model.detect(*given), loaded.model.detect(*given)
    assert one.valid.any() and torch.equal(one.valid, other.valid)
    torch.testing.assert_close(one.scores, other.scores, atol=1e-4, rtol=0)
    torch.testing.assert_close(one.boxes, other.boxes, atol=1e-2, rtol=0)


def test_compression_makes_a_copy(checkpoints):
    whole = checkpoints["faster_rcnn"]
    before = {key: value.clone() for key, value in whole.model.state_dict().items()}
    smaller = compress(whole, (4,))
    assert whole.config.model.svd == () and smaller.config.model.svd == (4,)
    after = whole.model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    features = MODELS["faster_rcnn"].neck.channels * 49
    assert count_parameters(whole.model) - count_parameters(smaller.model) == 32 * features - 4 * (32 + features)


@pytest.mark.parametrize("name", MODELS)
def test_half_precision_and_timing(name, checkpoints):
    models = [prepare(one.model, "bf16") for one in (checkpoints[name], compress(checkpoints[name], (8, 4)))]
    assert {value.dtype for value in models[1].region_head.box_head.parameters()} == {torch.bfloat16}
    assert models[1].detect(*inputs(name)).boxes.dtype == torch.float32
    assert all(0 < seconds < 60 for seconds in time_heads(models, 5, (64, 96), repeats=1))


def test_what_cannot_be_compressed(checkpoints):
    whole = checkpoints["faster_rcnn"]
    rcnn = replace(whole, config=replace(whole.config, model=RCNNOptions()))
    with pytest.raises(UserError, match="rcnn: only the box heads of fast_rcnn and faster_rcnn can be compressed"):
        compress(rcnn, (4,))
    with pytest.raises(UserError, match=r"^model\.svd: compressed already to ranks 8, 4; compress the original"):
        compress(compress(whole, (8, 4)), (4, 4))


def test_training_with_ranks_and_weights_is_refused(tmp_path):
    torch.save(resnet18().state_dict(), tmp_path / "resnet18.pth")
    for name in MODELS:
        backbone = {"name": "resnet", "depth": 18, "weights": str(tmp_path / "resnet18.pth")}
        options = config_from_dict({"model": {"name": name, "backbone": backbone, "svd": [4]}}, "here").model
        with pytest.raises(UserError, match=r"^svd: only a trained box head can be truncated; train without svd"):
            build_detector(options, 2)


# ---- the command -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_the_command_writes_a_checkpoint_for_eval(name, checkpoints, tmp_path, capsys):
    one, other = tmp_path / "one.ckpt", tmp_path / "new" / "other.ckpt"
    save_checkpoint(checkpoints[name], one)
    command = ["compress", "--ckpt", str(one), "--out", str(other), "--ranks", "32", "32", "--split", "val"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    rows = {line.rsplit(maxsplit=2)[0].strip(): line.rsplit(maxsplit=2)[1:] for line in printed.splitlines()}
    assert rows["AP, %"][0] == rows["AP, %"][1] and {"AP50, %", "VOC07, %"} <= rows.keys()
    counts = [int(value.replace(",", "")) for value in rows["parameters of the head"]]
    features = MODELS[name].neck.channels * 49
    assert counts == [32 * (features + 1) + 32 * 33 + 33 * (1 + 5 * len(SHAPES)), counts[0] + 32 * 32 * 2]
    regions = {"faster_rcnn": 20, "fast_rcnn": 40}[name]
    assert all(float(seconds) >= 0 for seconds in rows[f"seconds per image of the head, {regions} regions"])
    assert printed.splitlines()[-1] == str(other)
    assert main(["eval", "--ckpt", str(other), "--split", "val", "--out", str(tmp_path / "eval")]) == 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "error: svd: 1024: layers.0 has 32 × 12544 weights; give a rank of 1 … 32"),
        (["--ranks", "33"], "error: svd: 33: layers.0 has 32 × 12544 weights; give a rank of 1 … 32"),
        (["--ranks", "4", "4", "4"], "error: svd: 3 ranks, but the box head has 2 fully connected layers"),
        (["--split", "tset"], "there is no split tset"),
        (["--training.epochs=3"], "checkpoints are already trained"),
        (["--data.rot=x"], "there is no such option; did you mean data.root?"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_and_leave_no_file(more, message, checkpoints, tmp_path, capsys):
    one, other = tmp_path / "one.ckpt", tmp_path / "new" / "other.ckpt"
    save_checkpoint(checkpoints["faster_rcnn"], one)
    assert main(["compress", "--ckpt", str(one), "--out", str(other), *more]) == 2
    error = capsys.readouterr().err
    assert error.startswith("detect: error: ") and error.count("\n") == 1 and message in error
    assert not other.parent.exists()


def test_a_split_without_proposals_is_refused(checkpoints, tmp_path, capsys):
    one, other = tmp_path / "one.ckpt", tmp_path / "other.ckpt"
    save_checkpoint(checkpoints["fast_rcnn"], one)
    without = ["--ranks", "4", "--split", "val", "--data.proposals=null"]
    assert main(["compress", "--ckpt", str(one), "--out", str(other), *without]) == 2
    assert "data.proposals: fast_rcnn needs proposals" in capsys.readouterr().err and not other.exists()


def test_a_file_is_never_overwritten(checkpoints, tmp_path, capsys):
    one = tmp_path / "one.ckpt"
    save_checkpoint(checkpoints["faster_rcnn"], one)
    before = one.read_bytes()
    assert main(["compress", "--ckpt", str(one), "--out", str(one), "--ranks", "4"]) == 2
    assert "this exists already; give another --out" in capsys.readouterr().err and one.read_bytes() == before
