"""Options: frozen dataclasses whose values are checked, from Python as well as from YAML."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, TypeVar, dataclass_transform

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

T = TypeVar("T")
Fraction = Annotated[float, Field(ge=0, le=1)]
"""From 0 to 1, both included."""
Layers = Annotated[int, Field(ge=0, le=64)]
"""How many layers of a kind a part of a network has, one after the other."""


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def options(cls: type[T]) -> type[T]:
    """Makes a class a frozen dataclass that refuses unknown names, values of another type, NaN and infinity."""
    make: Any = dataclass(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
    return make(cls)
