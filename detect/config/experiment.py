"""One YAML file is one experiment: the model, the data, the training."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import field
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    Discriminator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Tag,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from detect.backbones import VGG, VGGM, AlexNet, GoogLeNet, LeNet, ResNet, Timm
from detect.data.classification_options import ClassificationDataOptions
from detect.data.options import DataOptions
from detect.errors import UserError
from detect.files.fence import MAX_BYTES, is_yaml_bomb, read_bounded
from detect.models import (
    RCNN,
    BoxOptions,
    Classifier,
    CropOptions,
    Detector,
    FasterRCNN,
    FastRCNN,
    HeadOptions,
    Learning,
    PoolingOptions,
    PostprocessOptions,
    RegionOptions,
    RidgeOptions,
    RPNOptions,
    SVMOptions,
)
from detect.models.low_rank import factorize
from detect.options import Fraction, options, over

BackboneOptions = Annotated[ResNet | VGG | VGGM | AlexNet | GoogLeNet | LeNet | Timm, Field(discriminator="name")]
Ranks = tuple[PositiveInt, ...]
_FAST_RCNN = BoxOptions(samples=64, negative_from=0.1, delta_weights=None, beta=1.0)
_RCNN = BoxOptions(samples=128, delta_weights=(1, 1, 1, 1))
_STRICT = PostprocessOptions(nms_iou=0.3)
"""Of the head's fully connected layers, from the first; see `detect.models.low_rank`."""


@options
class FasterRCNNOptions:
    """The arguments of `FasterRCNN`, and the ranks of a head that `detect compress` has made smaller."""

    name: Literal["faster_rcnn"] = "faster_rcnn"
    backbone: BackboneOptions = field(default_factory=ResNet)
    rpn: RPNOptions = field(default_factory=RPNOptions)
    pooling: PoolingOptions = field(default_factory=PoolingOptions)
    head: HeadOptions = field(default_factory=HeadOptions)
    boxes: BoxOptions = field(default_factory=BoxOptions)
    detections: PostprocessOptions = field(default_factory=PostprocessOptions)
    svd: Ranks = ()

    def build(self, num_classes: int) -> FasterRCNN:
        """The model, with its weights initialised or loaded as `backbone.weights` says."""
        model = FasterRCNN(
            num_classes,
            backbone=self.backbone,
            rpn=self.rpn,
            pooling=self.pooling,
            head=self.head,
            boxes=self.boxes,
            detections=self.detections,
        )
        _factorize(model, self)
        return model


@options
class FastRCNNOptions:
    """The arguments of `FastRCNN`; the defaults are the paper's (Girshick 2015, §2.3), but for the backbone.

    And the ranks of a head that `detect compress` has made smaller.
    """

    name: Literal["fast_rcnn"] = "fast_rcnn"
    backbone: BackboneOptions = field(default_factory=ResNet)
    pooling: PoolingOptions = field(default_factory=PoolingOptions)
    head: HeadOptions = field(default_factory=HeadOptions)
    boxes: Annotated[BoxOptions, over(_FAST_RCNN)] = _FAST_RCNN
    detections: Annotated[PostprocessOptions, over(_STRICT)] = _STRICT
    scales: tuple[PositiveFloat, ...] = ()
    svd: Ranks = ()

    def build(self, num_classes: int) -> FastRCNN:
        """The model, with its weights initialised or loaded as `backbone.weights` says."""
        model = FastRCNN(
            num_classes,
            backbone=self.backbone,
            pooling=self.pooling,
            head=self.head,
            boxes=self.boxes,
            detections=self.detections,
            scales=self.scales,
        )
        _factorize(model, self)
        return model


@options
class RCNNOptions:
    """The arguments of `RCNN` and of its training; all but the network are the paper's (Girshick et al. 2014).

    With `fine_tuning` false, the paper's ablation of §3.2, the network stays as it was initialised or loaded.
    """

    name: Literal["rcnn"] = "rcnn"
    backbone: BackboneOptions = field(default_factory=ResNet)
    crop: CropOptions = field(default_factory=CropOptions)
    regions: RegionOptions = field(default_factory=RegionOptions)
    boxes: Annotated[BoxOptions, over(_RCNN)] = _RCNN
    detections: Annotated[PostprocessOptions, over(_STRICT)] = _STRICT
    fine_tuning: bool = True
    svm: SVMOptions = field(default_factory=SVMOptions)
    ridge: RidgeOptions = field(default_factory=RidgeOptions)

    def build(self, num_classes: int) -> RCNN:
        """The model, with its weights initialised or loaded as `backbone.weights` says; SVMs and regressors zero."""
        return RCNN(
            num_classes,
            backbone=self.backbone,
            crop=self.crop,
            regions=self.regions,
            boxes=self.boxes,
            detections=self.detections,
        )


@options
class ClassifierOptions:
    """The arguments of `Classifier`."""

    name: Literal["classifier"] = "classifier"
    backbone: BackboneOptions = field(default_factory=ResNet)
    learns: Learning = "all"
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    loss_weights: tuple[float, float, float] = (1.0, 0.3, 0.3)

    def build(self, num_classes: int) -> Classifier:
        """The model, with its weights initialised or loaded as `backbone.weights` says."""
        return Classifier(
            num_classes, self.backbone, self.learns, self.dropout, self.label_smoothing, self.loss_weights
        )


def _factorize(model: Detector, options: FasterRCNNOptions | FastRCNNOptions) -> None:
    """Gives the head its ranks, for the weights of a checkpoint to come; those of ImageNet would be left out."""
    if options.svd and options.backbone.weights is not None:
        raise UserError("model.svd: it is the trained head that is truncated; train without it, then detect compress")
    factorize(model.trunk, options.svd)


def _model_name(model: Any) -> str:
    """A config that does not say which detector it means, means Faster R-CNN."""
    return model.get("name", "faster_rcnn") if isinstance(model, dict) else getattr(model, "name", "")


ModelOptions = Annotated[
    Annotated[FasterRCNNOptions, Tag("faster_rcnn")]
    | Annotated[FastRCNNOptions, Tag("fast_rcnn")]
    | Annotated[RCNNOptions, Tag("rcnn")],
    Discriminator(_model_name),
]


@options
class TrainingOptions:
    """How a detector is optimised.

    Args:
        epochs: passes over the training split.
        optimizer: `sgd`, `adagrad`, `rmsprop`, `adam` or `adamw`, as torch has them.
        learning_rate: of the weights, after warm-up.
        momentum: of SGD and RMSprop.
        nesterov: Nesterov's momentum.
        weight_decay: of convolutions and linear layers; norms and biases have none.
        bias_rate: factor of the learning rate for biases; 2 in the papers' code.
        warmup_steps: steps over which the rate rises from `warmup_start` of itself.
        warmup_start: see there.
        schedule: `steps` divides the rate by ten at each milestone, `cosine` lets it fall to zero, `constant` keeps it.
        milestones: epochs, which may be fractions, for `steps`.
        clip_norm: the largest norm of all gradients together; null for no limit.
        precision: `fp32`, or mixed with `bf16` or `fp16`; `auto` is bf16 where the hardware multiplies it, else fp32.
        ema: decay of the exponential moving average of the weights that is evaluated and kept; null for none.
        compile: run the loss through torch.compile.
        alternating: the paper's four-step training (Ren et al. 2015, §3.2); each step has `epochs` passes.
        validate_every: epochs from one validation to the next.
        save_minutes: of work that a kill may cost: `last.ckpt` is written so often within an epoch, and after each;
            null for after each alone.
        patience: validations without a better AP after which training ends; null for never.
        seed: of initialisation, shuffles, augmentations and sampling.
        accelerator: where to train; `auto` takes a GPU where there is one.
        devices: how many of them; null takes all GPUs, or one process on the CPU.
    """

    epochs: PositiveInt = 12
    optimizer: Literal["sgd", "adagrad", "rmsprop", "adam", "adamw"] = "sgd"
    learning_rate: PositiveFloat = 0.02
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    nesterov: bool = False
    weight_decay: NonNegativeFloat = 1e-4
    bias_rate: NonNegativeFloat = 1.0
    warmup_steps: NonNegativeInt = 500
    warmup_start: Fraction = 0.001
    schedule: Literal["steps", "cosine", "constant"] = "steps"
    milestones: tuple[NonNegativeFloat, ...] = (8, 11)
    clip_norm: PositiveFloat | None = None
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "fp32"
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    compile: bool = False
    alternating: bool = False
    validate_every: PositiveInt = 1
    save_minutes: PositiveFloat | None = 15.0
    patience: PositiveInt | None = None
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: PositiveInt | None = None

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> TrainingOptions:
        if self.nesterov and (self.optimizer != "sgd" or not self.momentum):
            raise ValueError("nesterov is of sgd with momentum; leave it out, or choose these")
        return self


@options
class Config:
    """What `detect train` does, and what a checkpoint remembers.

    Args:
        model: the network.
        data: the images.
        training: the optimisation.
        deviations: where this departs from the paper that it follows; printed before training.
    """

    model: ModelOptions = field(default_factory=FasterRCNNOptions)
    data: DataOptions = field(default_factory=DataOptions)
    training: TrainingOptions = field(default_factory=TrainingOptions)
    deviations: tuple[str, ...] = ()


@options
class ClassificationConfig:
    """What `detect train` does with a classifier, and what its checkpoint remembers."""

    model: ClassifierOptions = field(default_factory=ClassifierOptions)
    data: ClassificationDataOptions = field(default_factory=ClassificationDataOptions)
    training: TrainingOptions = field(default_factory=TrainingOptions)
    deviations: tuple[str, ...] = ()


Experiment = Config | ClassificationConfig


def check_proposals(config: Config) -> None:
    """Raises `UserError` where proposals would come from an RPN and from a store, or from neither."""
    if isinstance(config.model, FasterRCNNOptions):
        if config.data.proposals is not None:
            raise UserError("data.proposals: this detector proposes by itself; leave the store out")
    elif config.data.proposals is None:
        raise UserError(
            f"data.proposals: {config.model.name} needs them; run detect propose {config.data.root} --out "
            "proposals.db, then add --data.proposals proposals.db"
        )


_DETECTION: TypeAdapter[Config] = TypeAdapter(Config)
_CLASSIFICATION: TypeAdapter[ClassificationConfig] = TypeAdapter(ClassificationConfig)
_TAGS = {"rcnn", "fast_rcnn", "faster_rcnn", "alexnet", "googlenet", "lenet", "resnet", "timm", "vgg", "vgg_m"}


def load_config(path: Path | None, overrides: Sequence[str] = ()) -> Config:
    """The experiment of a YAML file on a detector, with overrides such as `--data.root=DIR` or `--data.root DIR`.

    Raises `UserError` with the file, the key and what was expected there.
    """
    experiment = load_experiment(path, overrides)
    if isinstance(experiment, ClassificationConfig):
        raise UserError(f"{path}: describes a classifier; give the config of a detector")
    return experiment


def load_experiment(path: Path | None, overrides: Sequence[str] = ()) -> Experiment:
    """The experiment of a YAML file, on a detector or, where `model.name` is `classifier`, on a classifier."""
    return config_from_dict({} if path is None else _read_yaml(path), str(path or "options"), overrides)


def config_from_dict(values: dict[str, Any], source: str, overrides: Sequence[str] = ()) -> Experiment:
    """The experiment that a nested dictionary and overrides describe; `source` is named in errors of the former."""
    values, given = deepcopy(values), _pairs(overrides)
    for key, text in given:
        _assign(values, key, text)
    adapter = _adapter(_model_name(values.get("model")))
    try:
        return adapter.validate_python(values)
    except ValidationError as error:
        place, mistake = _first_mistake(error, adapter)
        for key, _ in given:
            if f"{place}.".startswith(f"{key}."):
                raise UserError(f"--{place}: {mistake}") from None
            if f"{key}.".startswith(f"{place}."):
                raise UserError(f"--{key}: {mistake}") from None
        raise UserError(f"{source}: {place}: {mistake}") from None


def config_to_dict(config: Experiment) -> dict[str, Any]:
    """The experiment as plain numbers, strings, lists and dictionaries."""
    return _adapter(config.model.name).dump_python(config, mode="json")


def config_to_yaml(config: Experiment) -> str:
    """The experiment as `load_config` reads it."""
    return yaml.safe_dump(config_to_dict(config), sort_keys=False, allow_unicode=True)


def save_config(config: Experiment, path: Path) -> None:
    """Writes the experiment as YAML that `load_config` reads."""
    path.write_text(config_to_yaml(config), encoding="utf-8")


def _adapter(model: str) -> TypeAdapter:
    return _CLASSIFICATION if model == "classifier" else _DETECTION


class _Loader(yaml.SafeLoader):
    """Refuses a key that a section has twice, of which YAML's own would forget the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if (key.tag, key.value) in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value} is there twice", problem_mark=key.start_mark)
            if isinstance(key, yaml.ScalarNode):
                seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = read_bounded(path, MAX_BYTES[".yaml"]).decode("utf-8")
        if is_yaml_bomb(text, aliases=8):
            raise UserError(f"{path}: it has many YAML aliases or deep nesting; write the values out")
        values = yaml.load(text, _Loader)
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror}; give the path of a config, such as configs/bccd/faster_rcnn.yaml"
        ) from None
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path}: no valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: a config is a mapping with the keys model, data and training")
    return values


def _pairs(overrides: Sequence[str]) -> list[tuple[str, str]]:
    """(key, text) of each `--key=text` or `--key text`."""
    pairs, rest = [], list(overrides)
    while rest:
        word = rest.pop(0)
        key, equals, text = word.removeprefix("--").partition("=")
        if not word.startswith("--") or not (equals or rest):
            raise UserError(f"{word}: options are given as --section.key VALUE, for example --data.root DIR")
        pairs.append((key, text if equals else rest.pop(0)))
    return pairs


def _assign(values: dict[str, Any], key: str, text: str) -> None:
    *sections, last = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise UserError(f"--{key}: {section} is a value, not a section")
    try:
        values[last] = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):  # the latter of a date that is none
        values[last] = text


def _first_mistake(error: ValidationError, adapter: TypeAdapter) -> tuple[str, str]:
    """The key of the first error, and in one line what is wrong there and what would be right."""
    mistake = error.errors(include_url=False)[0]
    # The tag of a union stands in pydantic's path, but not in the file.
    place = ".".join(str(part) for part in mistake["loc"] if part not in _TAGS)
    match mistake["type"]:
        case "unexpected_keyword_argument" | "extra_forbidden":
            return place, "there is no such option" + _similar(place, adapter)
        case "union_tag_not_found":
            return f"{place}.name", "it is missing; say which one is meant"
        case "union_tag_invalid" if isinstance(mistake["input"], dict):
            tags = mistake["ctx"]["expected_tags"] + (", 'classifier'" if place == "model" else "")
            return f"{place}.name", f"choose {tags}, not {mistake['ctx']['tag']!r}"
        case "union_tag_invalid":
            wanted = "Input should be a mapping"
        case "tuple_type":
            wanted = "Input should be a list, such as " + (f"[{mistake['input']}]" if mistake["input"] else "[1, 2]")
        case "value_error":  # of our own validators, which say what to do
            return place, mistake["msg"].removeprefix("Value error, ")
        case _:
            wanted = mistake["msg"]
    more = f" ({error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return place, f"{wanted}, not {reprlib.repr(mistake['input'])}{more}"


def _similar(place: str, adapter: TypeAdapter) -> str:
    """A question whether another option was meant: one of the same name elsewhere, else one that looks alike."""
    name, keys = place.rpartition(".")[2], _all_keys(adapter)
    if place in keys:  # another detector has it
        return ""
    near = [key for key in keys if key.rpartition(".")[2] == name] or get_close_matches(place, keys, n=1)
    return f"; did you mean {' or '.join(near[:3])}?" if near else ""


def _all_keys(adapter: TypeAdapter) -> list[str]:
    """Every option, as `training.epochs`."""
    schema = adapter.json_schema()

    def keys(part: dict[str, Any], prefix: str) -> Iterator[str]:
        for name, value in part.get("properties", {}).items():
            yield prefix + name
            for option in value.get("oneOf", [value]):
                if "$ref" in option:
                    yield from keys(schema["$defs"][option["$ref"].rpartition("/")[2]], f"{prefix}{name}.")

    return list(dict.fromkeys(keys(schema, "")))
