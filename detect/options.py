"""Options: frozen dataclasses whose values are checked, from Python as well as from YAML."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, TypeVar, dataclass_transform

from pydantic import BeforeValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

T = TypeVar("T")
Fraction = Annotated[float, Field(ge=0, le=1)]
"""From 0 to 1, both included."""
Layers = Annotated[int, Field(ge=0, le=64)]
"""How many layers of a kind a part of a network has, one after the other."""


def over(default: Any) -> BeforeValidator:
    """For a section whose values, where only some are given, are otherwise those of `default` and not of its class."""
    there = {one.name: getattr(default, one.name) for one in dataclasses.fields(default)}
    return BeforeValidator(lambda given: {**there, **given} if isinstance(given, dict) else given)


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def options(cls: type[T]) -> type[T]:
    """Makes a class a frozen dataclass that refuses unknown names, values of another type, NaN and infinity."""
    make: Any = dataclass(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
    return make(cls)
