"""Reading and checking YAML files and command line overrides."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, create_model

from detect.backbones import BACKBONE_NAMES
from detect.config.experiment import RECIPES, ClassificationConfig, Config, Experiment, with_division
from detect.config.included import find_config, no_such_config
from detect.config.other_names import answer_other_name
from detect.config.renamed import find_renamed
from detect.config.training_options import TrainingOptions
from detect.data.division import beside_run
from detect.errors import UserError
from detect.files.fence import MAX_BYTES, is_yaml_bomb, read_bounded
from detect.models import ClassifierOptions, DetectorOptions, model_names
from detect.models import options_class as detector_options_class

CLASSIFIER = "classifier"
_UNKNOWN = "there is no such option"


def load_config(path: Path | None, overrides: Sequence[str] = ()) -> Config:
    """Return the experiment of a detector, with overrides `--data.root=DIR` or `--data.root DIR`.

    Args:
        path: a YAML file, or the name of a config of the package, such as `bccd/faster_rcnn`; None for the defaults.
        overrides: options that replace those of the config.

    Raises:
        UserError: there is no such config, or the file or an override is not valid; the message names file, key and
            expected value.
    """
    experiment = load_experiment(path, overrides)
    if isinstance(experiment, ClassificationConfig):
        raise UserError(f"{path}: describes a classifier; give the config of a detector")
    return experiment


def load_experiment(
    path: Path | None, overrides: Sequence[str] = (), sections: Mapping[str, Any] | None = None
) -> Experiment:
    """Return the experiment of a detector or, if `model.name` is `classifier`, of a classifier, like `load_config`.

    Args:
        path: a YAML file; None for the default options.
        overrides: options that replace those of the file.
        sections: whole sections that replace those of the file before the overrides do.

    Raises:
        UserError: the file or an override is not valid.
    """
    values = {} if path is None else _read_yaml(find_config(path))
    return config_from_dict({**values, **(sections or {})}, str(path or "options"), overrides)


def config_from_dict(values: dict[str, Any], source: str, overrides: Sequence[str] = ()) -> Experiment:
    """Return the experiment of a nested dictionary with overrides.

    Args:
        values: the dictionary.
        source: file that holds it, for messages. If its run was moved, the division of the data is read from the run's
            new folder.
        overrides: as for `load_config`.
    """
    values, given = deepcopy(values), _pairs(overrides)
    for key, text in given:
        _assign(values, key, text)
    if renamed := find_renamed(values):
        old, new = renamed
        raise _mistake(old, f"there is no such option; it is now {new}", source, given)
    try:
        model: Any = options_class(_model_name(values.get("model")))
        sections = experiment_adapter(model).validate_python(values)
    except KeyError as error:
        mistake = f"choose {', '.join(map(repr, (*model_names(), CLASSIFIER)))}, not {error.args[0]!r}"
        raise _mistake("model.name", mistake, source, given) from None
    except ValidationError as error:
        raise _mistake(*_first_mistake(error, model), source, given, model) from None
    parts = (sections.model, sections.data, sections.training, sections.deviations)
    if model is ClassifierOptions:
        return ClassificationConfig(*parts)
    config = Config(*parts)
    return with_division(config, beside_run(config.data.division, Path(source)))


def config_to_dict(config: Experiment) -> dict[str, Any]:
    """Return the experiment as plain numbers, strings, lists and dictionaries."""
    return TypeAdapter(type(config)).dump_python(config, mode="json")


def config_to_yaml(config: Experiment) -> str:
    """Return the experiment as YAML that `load_experiment` reads."""
    return yaml.safe_dump(config_to_dict(config), sort_keys=False, allow_unicode=True)


def given_options(overrides: Sequence[str]) -> set[str]:
    """Return the names of the options or sections in overrides. Raise `UserError` for words of another form."""
    return {key for key, _ in _pairs(overrides)}


def refuse_training_options(overrides: Sequence[str]) -> None:
    """Raise `UserError` for options of training, which do not apply to a checkpoint."""
    for word in overrides:
        if word.startswith("--training."):
            raise UserError(f"{word}: checkpoints are already trained; give only options of data and model")


def options_class(name: str) -> type[DetectorOptions] | type[ClassifierOptions]:
    """Return the options class of a model by its YAML name. Raise `KeyError` if there is no such model."""
    return ClassifierOptions if name == CLASSIFIER else detector_options_class(name)


def _model_name(model: Any) -> str:
    """Return the model's name, by default that of Faster R-CNN. Raise `KeyError` for anything but text."""
    name = model.get("name", "faster_rcnn") if isinstance(model, dict) else getattr(model, "name", "faster_rcnn")
    if not isinstance(name, str):  # a YAML list is not hashable
        raise KeyError(name)
    return name


@cache
def experiment_adapter(model: Any) -> TypeAdapter:
    """Return pydantic's adapter for an experiment with this class of model options."""
    experiment = ClassificationConfig if model is ClassifierOptions else Config
    data = get_type_hints(experiment)["data"]
    schema = create_model(
        f"{model.__name__.removesuffix('Options')}Config",
        __config__=ConfigDict(extra="forbid"),
        model=(model, Field(default_factory=model)),
        data=(data, Field(default_factory=data)),
        training=(TrainingOptions, Field(default_factory=TrainingOptions)),
        deviations=(tuple[str, ...], ()),
    )
    return TypeAdapter(schema)


def _mistake(
    option: str, mistake: str, source: str, overrides: Sequence[tuple[str, str]], model: Any = None
) -> UserError:
    """Return the error, which names the override that caused it, or else the source."""
    is_unknown = mistake.startswith(_UNKNOWN)
    for key, _ in overrides:
        if f"{option}.".startswith(f"{key}."):
            return UserError(f"--{option}: {mistake}")
        if f"{key}.".startswith(f"{option}."):
            # In an unknown section, such as solver.base_lr, the option's own name may be one of another package.
            if is_unknown:
                return UserError(f"--{key}: {_UNKNOWN}{suggest(key, model)}")
            # Several options of a section contradict each other: the mistake names them.
            if set(key.removeprefix(option).split(".")) & set(re.findall(r"\w+", mistake)):
                return UserError(f"--{key}: {mistake}")
    # An override has exchanged the network, whose other options the source still gives.
    section, names = option.rpartition(".")[0], dict(overrides)
    if is_unknown and section != "model" and (name := names.get(f"{section}.name")):
        remedy = f"replace the section with --{section} '{{name: {name}}}'"
        return UserError(f"--{section}.name: {name} has no option {option}, which {source} gives; {remedy}")
    if option.startswith("model.") and (name := names.get("model.name")):
        remedy = f"begin with a config of {name}; `detect configs` lists them"
        return UserError(f"--model.name: {name} does not take {option} of {source}; {remedy}")
    return UserError(f"{source}: {option}: {mistake}")


class _Loader(yaml.SafeLoader):
    """Loader that refuses duplicate keys; YAML's own loader keeps the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if (key.tag, key.value) in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value} is given twice", problem_mark=key.start_mark)
            if isinstance(key, yaml.ScalarNode):
                seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = read_bounded(path, MAX_BYTES[".yaml"]).decode("utf-8-sig")
        if is_yaml_bomb(text, aliases=8):
            raise UserError(f"{path}: many YAML aliases or deep nesting; write the values out")
        values = yaml.load(text, _Loader)
    except FileNotFoundError:
        raise UserError(f"{path}: {no_such_config(path)}") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; give a config, such as bccd/faster_rcnn, or a YAML file") from None
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path}: invalid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: a config is a mapping with the keys model, data and training")
    return values


def _pairs(overrides: Sequence[str]) -> list[tuple[str, str]]:
    """Return (key, text) of each `--key=text` or `--key text`."""
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
        if values.get(section) is None:
            values[section] = {}
        values = values[section]
        if not isinstance(values, dict):
            raise UserError(f"--{key}: {section} is a value, not a section")
    try:
        values[last] = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):  # ValueError: an invalid date
        values[last] = text


def _first_mistake(error: ValidationError, model: Any) -> tuple[str, str]:
    """Return the option of the first error, and one line with the mistake and the expected value."""
    mistake = error.errors(include_url=False)[0]
    # pydantic's path contains the names of unions' members, the file does not.
    option = ".".join(str(part) for part in mistake["loc"] if part not in (*BACKBONE_NAMES, *RECIPES))
    match mistake["type"]:
        case "unexpected_keyword_argument" | "extra_forbidden":
            return option, _UNKNOWN + suggest(option, model)
        case "dataclass_type":
            listed = re.sub(r"(\.\d+)+$", "", option)  # the options of an item of a list are listed with the list
            return option, f"this is a section, not an option; `detect options {listed}` lists its options"
        case "union_tag_not_found":
            return f"{option}.name", "the name is missing; give one"
        case "union_tag_invalid" if isinstance(mistake["input"], dict):
            return f"{option}.name", f"choose {mistake['ctx']['expected_tags']}, not {mistake['ctx']['tag']!r}"
        case "union_tag_invalid":
            wanted = "Input should be a mapping"
        case "tuple_type":
            wanted = "Input should be a list, such as " + (f"[{mistake['input']}]" if mistake["input"] else "[1, 2]")
        case "value_error":  # our own validators say what to do
            return option, mistake["msg"].removeprefix("Value error, ")
        case _:
            wanted = mistake["msg"].partition(" or an instance of ")[0]
    more = f" ({error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return option, f"{wanted}, not {reprlib.repr(mistake['input'])}{more}"


def suggest(option: str, model: Any = None) -> str:
    """Return the end of a message about an unknown option: the name here of another package's, or similar names.

    Args:
        option: the unknown option.
        model: class of the model's options, whose names are suggested; None for those of all models.
    """
    if answer := answer_other_name(option):
        return f"; {answer}"
    name, keys = option.rpartition(".")[2], _keys(model) if model else _all_keys()
    if option in _all_keys():  # another model has it
        return ""
    near = [key for key in keys if key.rpartition(".")[2] == name] or get_close_matches(option, keys, n=1)
    return f"; did you mean {' or '.join(near[:3])}?" if near else ""


def _all_keys() -> list[str]:
    """Return the names of all options of all models."""
    models = [options_class(name) for name in (*model_names(), CLASSIFIER)]
    return list(dict.fromkeys(key for model in models for key in _keys(model)))


def _keys(model: Any) -> list[str]:
    """Return the names of all options of an experiment with this class of model options, such as `training.epochs`."""

    def sections(schema: dict[str, Any], value: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for option in value.get("oneOf", []) + value.get("anyOf", []):
            yield from sections(schema, option)
        if "$ref" in value:
            yield schema["$defs"][value["$ref"].rpartition("/")[2]]

    def keys(schema: dict[str, Any], part: dict[str, Any], prefix: str) -> Iterator[str]:
        for name, value in part.get("properties", {}).items():
            yield prefix + name
            for section in sections(schema, value):
                yield from keys(schema, section, f"{prefix}{name}.")

    schema = experiment_adapter(model).json_schema()
    return list(dict.fromkeys(keys(schema, schema, "")))
