"""Options: frozen dataclasses whose values are checked, from Python as well as from YAML."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar, dataclass_transform

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def options(cls: type[T]) -> type[T]:
    """Makes a class a frozen dataclass that refuses unknown names and values of another type."""
    make: Any = dataclass(frozen=True, config=ConfigDict(extra="forbid"))
    return make(cls)
