"""Options: frozen dataclasses with validated values."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, TypeVar, dataclass_transform

from pydantic import BeforeValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

T = TypeVar("T")
Fraction = Annotated[float, Field(ge=0, le=1)]
"""Number from 0 to 1, both included."""
Layers = Annotated[int, Field(ge=0, le=64)]
"""Number of consecutive layers of one kind."""


def over(default: Any) -> BeforeValidator:
    """Return a validator that takes missing values of a section from `default` instead of the defaults of its class."""
    defaults = {item.name: getattr(default, item.name) for item in dataclasses.fields(default)}
    return BeforeValidator(lambda given: {**defaults, **given} if isinstance(given, dict) else given)


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def options(cls: type[T]) -> type[T]:
    """Turn a class into a frozen dataclass that rejects unknown names, values of another type, NaN and infinity."""
    make: Any = dataclass(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
    return make(cls)
