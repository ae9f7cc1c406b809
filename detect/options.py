"""Options: frozen dataclasses whose values are checked, from Python as well as from YAML."""

from __future__ import annotations

from typing import Any, TypeVar, dataclass_transform

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def options(cls: type[T]) -> type[T]:
    """Makes a class a frozen dataclass that refuses unknown names and values of another type."""
    make: Any = dataclass(frozen=True, config=ConfigDict(extra="forbid"))
    return make(cls)
