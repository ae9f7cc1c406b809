"""Options as keyword arguments: their full names, and values that come back unchanged."""

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from detect.config import JointOptions, TrainingOptions, as_overrides, load_config
from detect.data.options import DataOptions
from detect.errors import UserError


def test_no_option_is_both_of_data_and_of_training():
    assert not {field.name for field in fields(DataOptions)} & {field.name for field in fields(TrainingOptions)}


def test_names_and_values():
    given = {
        "learning_rate": 1e-5,
        "short_side": [480, np.int64(640)],
        "root": Path("my, photos: 2"),
        "val": 0.2,
        "test": None,
        "classes": ("on", "1"),
        "compile": True,
        "recipe": JointOptions(),
        "augment": [{"HorizontalFlip": {"p": 0.5}}],
        "model.rpn.nms_threshold": 0.6,
    }
    config = load_config(None, as_overrides(given))
    data, training = config.data, config.training
    assert (training.learning_rate, training.compile, training.recipe) == (1e-5, True, JointOptions())
    assert (data.short_side, data.root, data.val, data.test) == ((480, 640), Path("my, photos: 2"), 0.2, None)
    assert data.classes == ("on", "1") and data.augment == ({"HorizontalFlip": {"p": 0.5}},)
    assert config.model.rpn.nms_threshold == 0.6


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("lr", "--lr: there is no such option; it is training.learning_rate"),
        ("nms_threshold", "did you mean model.postprocess.nms_threshold or model.rpn.nms_threshold?"),
    ],
)
def test_unknown_names_are_answered(name, answer):
    with pytest.raises(UserError) as error:
        load_config(None, as_overrides({name: 0.1}))
    assert answer in str(error.value)


def test_a_value_of_no_known_kind():
    with pytest.raises(UserError, match=r"^epochs: a object; give a number, a text, a path, or a list or dict"):
        as_overrides({"epochs": object()})
