"""Options as keyword arguments of the functions `detect.train` and `detect.evaluate`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import yaml
from pydantic_core import PydanticSerializationError, to_jsonable_python

from detect.config.training_options import TrainingOptions
from detect.data.classification_options import ClassificationDataOptions
from detect.data.options import DataOptions
from detect.errors import UserError

SECTIONS = {
    field.name: section
    for section, classes in (("data", (DataOptions, ClassificationDataOptions)), ("training", (TrainingOptions,)))
    for options in classes
    for field in fields(options)
}
"""Section of each option of data and training; no name is in both."""


def as_overrides(options: Mapping[str, Any]) -> list[str]:
    """Return keyword arguments as overrides of a config, for example `--training.learning_rate=0.01`.

    Args:
        options: values by name. Options of data and training go by their last name, such as `learning_rate`; all
            others by the whole one, such as `model.rpn.nms_threshold`, in `**{…}`.

    Raises:
        UserError: a value is not made of numbers, texts, paths, lists, dictionaries and options.
    """
    return [f"--{_full_name(name)}={_text(name, value)}" for name, value in options.items()]


def _full_name(name: str) -> str:
    return f"{SECTIONS[name]}.{name}" if name in SECTIONS else name


def _text(name: str, value: Any) -> str:
    try:
        plain = to_jsonable_python(value, fallback=_plain)
    except PydanticSerializationError:
        wanted = "a number, a text, a path, or a list or dictionary of these"
        raise UserError(f"{name}: a {type(value).__name__}; give {wanted}") from None
    return yaml.safe_dump(plain, default_flow_style=True, allow_unicode=True, width=math.inf).strip()


def _plain(value: Any) -> Any:
    """Return a value of numpy as Python's."""
    return value.tolist() if hasattr(value, "tolist") else to_jsonable_python(value)
