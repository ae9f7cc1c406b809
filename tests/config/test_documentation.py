"""The list of options and the JSON schema."""

import json
import os
import subprocess
import sys
from dataclasses import fields

import jsonschema
import pytest
import yaml

from detect.backbones import FPNOptions, ResNetOptions
from detect.cli import main
from detect.cli.list_options import _chosen
from detect.config import ClassificationConfig, Config, TrainingOptions, config_to_dict, load_experiment
from detect.config.documentation import REQUIRED, all_options, json_schema, option_meanings
from detect.config.included import FOLDER, config_names
from detect.config.reading import _all_keys
from detect.data.options import DataOptions
from detect.errors import UserError
from detect.options import options


def listed(key):
    return [option for option in all_options() if option.key == key]


# ---- list ------------------------------------------------------------------------------------------------------------


def test_every_option_is_listed_with_its_meaning():
    found = all_options()
    # the list leaves out the names of choices, which the sections have
    assert {option.key for option in found} == {key for key in _all_keys() if not key.endswith(".name")}
    assert not [option.key for option in found if len(option.meaning) < 5 or not option.kind]


@pytest.mark.parametrize("name", ["epochs", "learning_rate", "clip_norm", "schedule"])
def test_defaults_are_those_of_the_classes(name):
    (option,) = listed(f"training.{name}")
    assert set(option.defaults) >= {"faster_rcnn", "classifier"} and option.everywhere
    assert set(option.defaults.values()) == {getattr(TrainingOptions(), name)}


def test_types_are_in_words():
    kinds = {option.key: option.kind for option in all_options()}
    assert kinds["training.epochs"] == "integer > 0"
    assert kinds["training.seed"] == "integer ≥ 0 and < 4,294,967,296"
    assert kinds["training.clip_norm"] == "number > 0 or null"
    assert kinds["training.schedule"] == "steps | cosine | constant"
    assert kinds["training.compile"] == "true or false"
    assert kinds["model.rpn.nms_threshold"] == "number from 0 to 1"
    assert kinds["model.region_head.delta_weights"] == "list of 4 numbers > 0 or null"
    assert kinds["data.short_side"] == "list of integers > 0 and ≤ 8,192"
    assert kinds["data.proposals"] == "path or null" and kinds["data.augment"] == "list of mappings"
    assert kinds["training.recipe"] == "section with the name joint | alternating | rcnn_stages or null"
    names = "faster_rcnn | rcnn | fast_rcnn | mask_rcnn | cascade_rcnn | yolox | classifier"
    assert kinds["model"] == f"section with the name {names}"


def test_models_and_choices_with_other_defaults_are_told_apart():
    (option,) = listed("model.region_head.batch_size_per_image")
    same = dict.fromkeys(("faster_rcnn", "mask_rcnn", "cascade_rcnn"), 512)
    assert option.defaults == same | {"rcnn": 128, "fast_rcnn": 64} and option.everywhere
    resnet, vgg, darknet = listed("model.backbone.depth")
    assert resnet.defaults == {"resnet": 50} and vgg.defaults == {"vgg": 16} and not resnet.everywhere
    assert darknet.defaults == {"csp_darknet": 0.33} and darknet.kind != resnet.kind
    assert listed("model.backbone.model")[0].defaults == {"timm": REQUIRED}
    (section,) = listed("model.rpn")
    with_rpn = ("faster_rcnn", "mask_rcnn", "cascade_rcnn")
    assert section.defaults == dict.fromkeys(with_rpn, "") and not section.everywhere


def test_meanings_come_from_both_kinds_of_docstrings():
    assert option_meanings(FPNOptions)["channels"] == "width of all levels; 256 in the paper."
    resnet = option_meanings(ResNetOptions)
    assert resnet["weights"].startswith("A name of torchvision's weights") and "\n" not in resnet["weights"]
    assert set(resnet) >= {field.name for field in fields(ResNetOptions)} - {"name"}

    @options
    class Undocumented:
        """A line."""

        number: int = 1

    assert option_meanings(Undocumented) == {}


def test_sections_and_names_are_found():
    assert {option.key for option in _chosen("training.recipe.ridge")} == {
        "training.recipe.ridge",
        *(f"training.recipe.ridge.{name}" for name in ("penalty", "min_iou", "feature_norm")),
    }
    assert [option.key for option in _chosen("--training.epochs")] == ["training.epochs"]
    assert [option.key for option in _chosen("epochs")] == ["training.epochs"]
    assert {option.key for option in _chosen("nms_threshold")} == {
        "model.postprocess.nms_threshold",
        "model.rpn.nms_threshold",
    }
    assert len(_chosen(None)) == len(all_options())


@pytest.mark.parametrize(
    ("section", "end"),
    [
        ("lr", "; it is training.learning_rate"),
        ("training.epohcs", r"; did you mean training.epochs?"),
        ("xyzzy", ""),
    ],
)
def test_an_unknown_section_is_answered(section, end, capsys):
    assert main(["options", section]) == 2
    assert capsys.readouterr().err == f"detect: error: {section}: there is no such section or option{end}\n"


def test_the_list_fits_in_80_columns_and_breaks_no_name(capsys):
    assert main(["options"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    names = [line.split()[0] for line in lines if line and not line.startswith(" ")]
    assert names == [option.key for option in all_options()]
    assert main(["options", "model.region_head.batch_size_per_image"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "model.region_head.batch_size_per_image",
        "    integer > 0, default 512 (128 for rcnn, 64 for fast_rcnn)",
        "    Regions per image in the loss.",
    ]


def test_a_closed_pipe_is_no_traceback():
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "detect", "options"], stdout=writing, stderr=subprocess.PIPE, text=True
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


# ---- schema ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def validator():
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(json.loads(json.dumps(schema)))


@pytest.mark.parametrize("name", config_names())
def test_the_schema_accepts_every_config(name, validator):
    validator.validate(yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8")))
    validator.validate(config_to_dict(load_experiment(FOLDER / f"{name}.yaml")))


@pytest.mark.parametrize("config", [Config(), ClassificationConfig()], ids=["detector", "classifier"])
def test_the_schema_accepts_the_defaults(config, validator):
    validator.validate(config_to_dict(config))
    validator.validate({})
    validator.validate({"training": {"epochs": 3}})


@pytest.mark.parametrize(
    "values",
    [
        {"training": {"epochs": 0}},
        {"training": {"epohcs": 3}},
        {"trainings": {}},
        {"model": {"name": "yolo"}},
        {"model": {"name": "rcnn", "rpn": {}}},
        {"model": {"name": "classifier"}, "data": {"short_side": [600]}},
        {"model": {"backbone": {"depth": 50}}},
        {"model": {"backbone": {"name": "vgg", "depth": 50}}},
        {"model": {"backbone": {"name": "timm"}}},
        {"data": {"short_side": 600}},
    ],
    ids=str,
)
def test_the_schema_refuses_what_is_refused_in_a_config(values, validator, tmp_path):
    assert not validator.is_valid(values)
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(UserError):
        load_experiment(tmp_path / "a.yaml")


def test_the_schema_has_the_meanings(capsys):
    assert main(["options", "--schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema == json.loads(json.dumps(json_schema()))
    definitions = schema["$defs"]
    assert definitions["TrainingOptions"]["properties"]["epochs"]["description"] == "passes over the training split."
    missing = [
        (name, key)
        for name, definition in definitions.items()
        for key, value in definition["properties"].items()
        if key != "name" and name.endswith("Options") and not value.get("description")
    ]
    assert not missing
    assert set(option_meanings(DataOptions)) == set(definitions["DataOptions"]["properties"])
    assert schema["properties"]["model"]["properties"]["name"]["enum"][0] == Config().model.name
