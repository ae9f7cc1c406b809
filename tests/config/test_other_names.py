"""Option names of other packages."""

import re
from pathlib import Path

import pytest

from detect.cli import main
from detect.config import load_config
from detect.config.other_names import OTHER_NAMES, answer_other_name
from detect.config.reading import _all_keys
from detect.errors import UserError

KEYS = set(_all_keys())


@pytest.mark.parametrize(
    ("option", "answer"),
    [
        ("training.lr", "it is training.learning_rate"),
        ("lr0", "it is training.learning_rate"),
        ("model.backbone.frozen_stages", "it is model.backbone.train_stages, which has the opposite meaning: "),
        ("freeze", "it is model.backbone.train_stages, which has the opposite meaning: "),
        ("model.trainable_backbone_layers", "it is model.backbone.train_stages, counted from the last stage"),
        ("imgsz", "the size of images is data.short_side, a list such as [640], and data.long_side, its limit"),
        ("data.img-size", "the size of images is data.short_side"),
        ("training.batch_size", "it is data.batch_size, per device"),
        ("batch", "it is data.batch_size, per device"),
        ("device", "it is training.accelerator: auto, cpu or gpu; training.devices is the number of devices"),
        ("training.class_weights", "all classes count alike; model.region_head.positive_fraction sets"),
        ("data.num_workers", "it is data.workers"),
        ("model.num_classes", "classes and their number come from the data set"),
        ("pretrained", "it is model.backbone.weights: a name of torchvision's, such as IMAGENET1K_V1, or a file"),
        ("amp", "it is training.precision: fp32, bf16, fp16 or auto"),
        ("wd", "it is training.weight_decay"),
        ("SOLVER.BASE_LR", "it is training.learning_rate"),  # in a section that does not exist here
        ("conf", "it is model.postprocess.score_threshold; for detect predict --score"),
        ("iou", "it is model.postprocess.nms_threshold; the RPN has its own, model.rpn.nms_threshold"),
        ("max_det", "it is model.postprocess.max_detections"),
        ("epoch", "it is training.epochs"),
        # names of ours without their section need no table
        ("epochs", "did you mean training.epochs?"),
        ("patience", "did you mean training.patience?"),
    ],
)
def test_another_name_is_answered(option, answer):
    with pytest.raises(UserError) as caught:
        load_config(Path("bccd/faster_rcnn"), [f"--{option}=1"])
    assert str(caught.value).startswith(f"--{option}: there is no such option; {answer}")


@pytest.mark.parametrize("name", OTHER_NAMES)
def test_an_answer_names_options_that_exist(name):
    answer = answer_other_name(name)
    named = re.findall(r"\b(?:data|model|training)(?:\.\w+)+", answer)
    assert set(named) <= KEYS, answer
    assert named or "--" in answer or "data set" in answer or answer.startswith(("NMS compares", "start several"))


@pytest.mark.parametrize("name", OTHER_NAMES)
def test_no_name_hides_an_option_of_its_own(name):
    """Where `name` is an option here, that option is accepted and never answered; elsewhere the answer must name it."""
    own = {key for key in KEYS if key.rpartition(".")[2] == name}
    assert all(key in answer_other_name(name) or key in ("data.dataset", "model.crop.batch_size") for key in own)


def test_commands_without_options_of_the_config_answer_as_well(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["predict", "--ckpt", "best.ckpt", "--conf=0.3", "photos"])
    assert caught.value.code == 2
    assert "unrecognised: --conf=0.3; it is model.postprocess.score_threshold; for detect" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["predict", "--ckpt", "best.ckpt", "--xyzzy=0.3", "photos"])
    assert capsys.readouterr().err.endswith("unrecognised: --xyzzy=0.3\n")
