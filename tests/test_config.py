import re
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
import yaml

from detect.config import (
    Config,
    config_from_dict,
    config_to_dict,
    config_to_yaml,
    load_config,
    load_experiment,
    recipe_of,
)
from detect.config.demo import demo_config
from detect.config.included import config_names
from detect.config.reading import _all_keys
from detect.config.renamed import RENAMED
from detect.errors import UserError
from detect.models import Classifier, ClassifierOptions, build_detector

ROOT = Path(__file__).parents[1]
CONFIGS = [Path("detect/configs") / f"{name}.yaml" for name in config_names()]


def test_there_are_configs():
    assert CONFIGS


@pytest.mark.parametrize("path", CONFIGS, ids=str)
def test_a_config_loads_and_comes_back(path, tmp_path):
    config = load_experiment(ROOT / path)
    assert config_from_dict(config_to_dict(config), source="itself") == config
    (tmp_path / "config.yaml").write_text(config_to_yaml(config), encoding="utf-8")
    assert load_experiment(tmp_path / "config.yaml") == config


def build_model(options):
    return Classifier(3, options) if isinstance(options, ClassifierOptions) else build_detector(options, 3)


@pytest.mark.parametrize("path", CONFIGS, ids=str)
def test_a_config_builds_a_model(path):
    config = load_experiment(ROOT / path, ["--model.backbone.weights=null"])
    with torch.device("meta"):  # VGG's 138 million numbers are neither drawn nor held
        assert build_model(config.model).num_classes == 3


@pytest.mark.parametrize("path", CONFIGS, ids=str)
def test_a_config_says_how_it_is_run_and_what_came_out(path):
    lines = (ROOT / path).read_text(encoding="utf-8").splitlines()
    head = "\n".join(line for line in lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))])
    assert re.search(rf"detect train -c {path.parent.name}/{path.stem}( |$)", head, re.MULTILINE)
    assert re.search(r"^# Result: \S", head, re.MULTILINE)
    if load_experiment(ROOT / path).model.name in ("rcnn", "fast_rcnn"):
        store = re.search(r"detect propose data/\S+ --out (\S+)\n", head)
        assert store and f"--data.proposals {store[1]}" in head


VOC2007 = 5011
"""Images of trainval."""


@pytest.mark.parametrize(
    ("name", "steps", "drops", "images", "objects", "backgrounds"),
    [
        ("rcnn_alexnet", 70_000, (20_000, 40_000, 60_000), 8, 32, 96),
        ("rcnn_vgg16", 70_000, (20_000, 40_000, 60_000), 6, 6, 18),
        ("fast_rcnn_alexnet", 40_000, (30_000,), 2, 32, 96),
        ("fast_rcnn_vgg_m", 40_000, (30_000,), 2, 32, 96),
        ("fast_rcnn_vgg16", 40_000, (30_000,), 2, 32, 96),
        ("faster_rcnn_vgg16", 70_000, (50_000,), 1, 32, 96),
    ],
)
def test_the_papers_steps_are_the_papers(name, steps, drops, images, objects, backgrounds):
    """Within a hundredth, for they are whole passes; a step's regions exactly."""
    config = load_config(ROOT / "detect/configs" / "voc" / f"{name}.yaml")
    training, head = config.training, config.model.region_head
    assert training.epochs * VOC2007 / config.data.batch_size == pytest.approx(steps, rel=0.01)
    drawn = [milestone * VOC2007 / config.data.batch_size for milestone in training.milestones]
    assert drawn == pytest.approx(drops, rel=0.01)
    assert (
        config.data.batch_size == images and int(head.batch_size_per_image * head.positive_fraction) * images == objects
    )
    assert head.batch_size_per_image * images == objects + backgrounds
    assert (training.learning_rate, training.momentum, training.weight_decay) == (0.001, 0.9, 0.0005)
    assert training.schedule == "steps" and training.bias_lr_factor == 2 and config.deviations


def test_a_byte_order_mark_is_read(tmp_path):
    (tmp_path / "a.yaml").write_text("training: {epochs: 3}\n", encoding="utf-8-sig")
    assert load_experiment(tmp_path / "a.yaml").training.epochs == 3


def test_a_config_of_plain_values_is_yaml(tmp_path):
    (tmp_path / "config.yaml").write_text(config_to_yaml(Config()), encoding="utf-8")
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == config_to_dict(Config())


def test_the_demo_with_masks_differs_in_the_mask_head_only(tmp_path):
    plain, masked = demo_config(tmp_path), demo_config(tmp_path, masks=True)
    assert not plain.model.predicts_masks and masked.model.predicts_masks
    names = {one.name for one in fields(plain.model)} - {"name"}
    assert all(getattr(plain.model, name) == getattr(masked.model, name) for name in names)
    assert (plain.data, plain.training) == (masked.data, masked.training)


def test_the_demo_is_an_experiment_like_any_other(tmp_path):
    config = demo_config(tmp_path)
    (tmp_path / "config.yaml").write_text(config_to_yaml(config), encoding="utf-8")
    assert load_config(tmp_path / "config.yaml") == config
    assert config.training.epochs % config.training.validate_every == 0  # its last weights are judged


@pytest.mark.parametrize("name", ["faster_rcnn", "fast_rcnn", "rcnn"])
def test_one_option_of_a_section_leaves_the_papers_others(name):
    model = {"name": name, "region_head": {"positive_iou": 0.6}, "postprocess": {"score_threshold": 0.5}}
    if name == "faster_rcnn":
        model["rpn"] = {"testing": {"post_nms_top_k": 7}}
    given = config_from_dict({"model": model}, "a config").model
    whole = config_from_dict({"model": {"name": name}}, "a config").model
    assert given.region_head == replace(whole.region_head, positive_iou=0.6)
    assert given.postprocess == replace(whole.postprocess, score_threshold=0.5)
    if name == "faster_rcnn":
        assert given.rpn.testing == replace(whole.rpn.testing, post_nms_top_k=7)


def test_a_section_that_is_there_twice_is_refused(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("training: {epochs: 3}\ndata: {root: a}\ntraining: {seed: 1}\n")
    with pytest.raises(UserError, match=r"a\.yaml: invalid YAML: training is given twice .*line 3"):
        load_config(path)


def test_what_looks_like_a_date_is_a_name():
    assert (
        load_config(ROOT / "detect/configs/bccd/faster_rcnn.yaml", ["--data.root", "2024-13-45"]).data.root.name[:4]
        == "2024"
    )


def test_options_change_a_config():
    config = load_config(
        ROOT / "detect/configs/bccd/faster_rcnn.yaml",
        [
            *("--data.root", "some where", "--data.short_side=[64, 96]", "--data.val", "val"),
            *("--training.learning_rate=1e-3", "--training.ema=null", "--model.backbone.depth=34"),
        ],
    )
    assert config.data.root == Path("some where") and config.data.short_side == (64, 96) and config.data.val == "val"
    assert config.training.learning_rate == 1e-3 and config.training.ema is None
    assert config.model.backbone.depth == 34 and config.model.backbone.norm == "batch"
    changed = config_from_dict(config_to_dict(config), "a checkpoint", ["--training.epochs", "3"])
    assert changed.training.epochs == 3 and changed.data == config.data


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--training.epohcs=3"], r"^--training\.epohcs: there is no such option; did you mean training\.epochs\?$"),
        (["--epochs=3"], r"^--epochs: there is no such option; did you mean training\.epochs\?$"),
        (["--xyzzy=3"], r"^--xyzzy: there is no such option$"),
        (["--data.short_side=64"], r"^--data\.short_side: Input should be a list, such as \[64\], not 64$"),
        (["--training.accelerator=banana"], r"accelerator: Input should be 'auto', 'cpu' or 'gpu', not 'banana'$"),
        (["--training.devices=0"], r"^--training\.devices: .*greater than 0"),
        (["--data.batch_size=0"], r"data\.batch_size: Input should be greater than 0, not 0$"),
        (["--data.workers=-1"], r"data\.workers: Input should be greater than or equal to 0, not -1$"),
        (["--data.short_side=[]"], r"data\.short_side: .*at least 1 item"),
        (["--training.schedule=step"], r"training\.schedule: Input should be 'steps', 'cosine' .*, not 'step'$"),
        (["--training.ema=1"], r"training\.ema: Input should be less than 1, not 1$"),
        (["--training.learning_rate=.nan"], r"training\.learning_rate: .*finite number, not nan$"),
        (["--training.weight_decay=.inf"], r"training\.weight_decay: .*finite number, not inf$"),
        (
            ["--model.postprocess.score_threshold=2"],
            r"model\.postprocess\.score_threshold: .*less than or equal to 1, not 2$",
        ),
        (["--model.postprocess.max_detections=-5"], r"model\.postprocess\.max_detections: .*greater than 0, not -5$"),
        (["--model.rpn.nms_threshold=-3"], r"model\.rpn\.nms_threshold: .*greater than or equal to 0, not -3$"),
        (["--model.rpn.anchor_ratios=[]"], r"model\.rpn\.anchor_ratios: .*at least 1 item"),
        (["--model.rpn.anchor_ratios=[0]"], r"model\.rpn\.anchor_ratios\.0: .*greater than 0, not 0"),
        (
            ["--model.rpn.training={pre_nms_top_k: 5, post_nms_top_k: 0}"],
            r"model\.rpn\.training\.post_nms_top_k: .*greater than 0",
        ),
        (
            ["--model.region_head.batch_size_per_image=0"],
            r"\.region_head\.batch_size_per_image: .*greater than 0, not 0$",
        ),
        (["--model.box_head.channels=0"], r"model\.box_head\.channels: .*greater than 0, not 0$"),
        (["--model.neck={name: fpn, channels: -1}"], r"model\.neck\.channels: .*not -1$"),
        (["--training.cuda_graphs=true"], r"^--training\.cuda_graphs: cuda_graphs needs compile; set compile to true"),
        (["--training.nesterov=true", "--training.momentum=0"], r"^--training\.nesterov: nesterov is for sgd with mom"),
        (["--model.rpn.anchor_sizes=[8, a]"], r"model\.rpn\.anchor_sizes\.1: .*number.*not 'a'$"),
        (["--model.backbone.depth=18"], r"model\.backbone\.name: the name is missing; give one$"),
        (["--model.backbone={name: resnet, depth: 19}"], r"model\.backbone\.depth: Input should be 18, 34, .*not 19$"),
        (["--model.backbone={name: resent}"], r"model\.backbone\.name: choose 'resnet', 'vgg', .*, not 'resent'$"),
        (["--model.name=[rcnn]"], r"model\.name: choose 'rcnn', 'fast_rcnn', .*, not \['rcnn'\]$"),
        (
            ["--model.name=yolo"],
            r"model\.name: choose 'rcnn', 'fast_rcnn', 'faster_rcnn', 'mask_rcnn', .*, not 'yolo'$",
        ),
        (["--model={name: fast_rcnn, rpn: {}}"], r"model\.rpn: there is no such option$"),
        (["--data=3"], r"^--data: this is a section, not an option; `detect options data` lists its options$"),
        (
            ["--model.name=cascade_rcnn", "--model.region_head.stages=[0.5]"],
            r"^--model.region_head.stages.0: this is a section, .*`detect options model.region_head.stages` lists",
        ),
        (["--data.root.folder=3", "--data.root.folder.x=3"], r"--data\.root\.folder\.x: folder is a value"),
        (["data.root", "x"], r"^data\.root: options are given as --section\.key VALUE, for example --data\.root DIR$"),
        (["--data.root"], r"^--data\.root: options are given as"),
        (["--training.epochs=0", "--training.momentum=1"], r"training\.epochs: .*not 0 \(1 more\)$"),
    ],
)
def test_a_mistake_is_one_line_with_the_key(given, message):
    with pytest.raises(UserError, match=message) as caught:
        load_config(None, given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            ["--training.devices=1", "--training.epochs=2"],
            r"^--training\.epochs: of 2 epochs, 15 are closing ones; give fewer closing_epochs, or more epochs$",
        ),
        (["--data.root=a", "--data.proposals=b"], r"^--data\.proposals: mosaic and mixup are for detectors without"),
        (
            ["--training.devices=1", "--training.optimizer=adam"],
            r"^--training\.optimizer: nesterov is for sgd with mom",
        ),
        (["--training.devices=1", "--training={nesterov: 1, optimizer: adam}"], r"^--training: nesterov is for sgd"),
        (
            ["--model.rpn.post_nms_top_k=9"],
            r"^--model\.rpn\.post_nms_top_k: .*did you mean model\.postprocess\.pre_nms",
        ),
        (["--model.rpn.nms_threshold=0.5"], r"^--model\.rpn\.nms_threshold: there is no such option$"),
        (
            ["--model.backbone.name=resnet"],
            r"^--model\.backbone\.name: resnet has no option model\.backbone\.width, which small/yolox_nano gives; "
            r"replace the section with --model\.backbone '\{name: resnet\}'$",
        ),
        (
            ["--model.name=fast_rcnn"],
            r"^--model\.name: fast_rcnn does not take model\.\w+\.\w+ of small/yolox_nano; "
            r"begin with a config of fast_rcnn; `detect configs` lists them$",
        ),
    ],
)
def test_a_mistake_against_a_config_names_its_cause(given, message):
    with pytest.raises(UserError, match=message):
        load_config(Path("small/yolox_nano"), given)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: [", "invalid YAML: .*line 2"),
        ("- a", "a config is a mapping with the keys model, data and training"),
        ("", "a config is a mapping"),
        ("training:", "training: this is a section, not an option; `detect options training` lists its options"),
        ("training: {epochs: many}", r"training\.epochs: .*not 'many'"),
        ("x: !!python/object/apply:os.getcwd []", "invalid YAML: "),
        ("\x00", "invalid YAML: "),
    ],
)
def test_a_wrong_file_is_named(tmp_path, text, message):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        load_config(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_the_file_is_named_where_its_own_value_is_wrong_and_not_the_option(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("training: {epochs: many}")
    with pytest.raises(UserError, match=rf"^{re.escape(str(path))}: training\.epochs: "):
        load_config(path, ["--training.ema=null"])
    assert load_config(path, ["--training.epochs=2"]).training.epochs == 2


@pytest.mark.parametrize(("name", "reason"), [("missing.yaml", "no such file"), ("", "Is a directory")])
def test_a_file_that_cannot_be_read_is_named(tmp_path, name, reason):
    with pytest.raises(UserError, match=rf"{re.escape(str(tmp_path / name))}: {reason}.*config"):
        load_config(tmp_path / name)


@pytest.mark.parametrize("old", RENAMED)
def test_an_old_name_is_answered_with_the_new_one(old):
    with pytest.raises(UserError, match=rf"^--{re.escape(old)}: there is no such option; it is now \S+") as caught:
        load_config(None, [f"--{old}=1"])
    assert RENAMED[old] in str(caught.value)


def test_an_option_of_a_renamed_section_is_answered_with_its_new_place():
    with pytest.raises(UserError, match=r"x\.yaml: model\.boxes\.positive_iou: .* model\.region_head\.positive_iou$"):
        config_from_dict({"model": {"boxes": {"positive_iou": 0.5}}}, "x.yaml")


def test_new_names_exist():
    keys = set(_all_keys())
    for new in RENAMED.values():
        assert re.split(r"[ ,:]", new)[0] in keys, new


def test_a_recipe_is_the_models_own_unless_another_of_its_is_chosen():
    assert recipe_of(Config()).name == "joint"
    assert recipe_of(load_config(ROOT / "detect/configs/voc/rcnn_vgg16.yaml")).svm.positive_weight == 2
    chosen = ["--training.recipe.name=alternating"]
    assert recipe_of(load_config(None, chosen)).name == "alternating"
    with pytest.raises(UserError, match=r"^training\.recipe: alternating is not for fast_rcnn; choose joint"):
        recipe_of(load_config(ROOT / "detect/configs/bccd/fast_rcnn.yaml", chosen))
