"""Shapes are types: within the tests every annotated call of the package is checked."""

import dataclasses
import functools
import os
import sys

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import beartype.typing  # noqa: F401 - for the names in _CONF
import jaxtyping
import numba
import pytest
import torch


def _unchecked(compiler):
    """`compiler`, given the functions themselves: it cannot read the wrappers that check their types."""

    @functools.wraps(compiler)
    def wrapper(*args, **kwargs):
        made = compiler(*args, **kwargs)
        if any(map(callable, args)):  # not as a decorator with arguments
            return made
        return lambda function: made(getattr(function, "__wrapped__", function))

    return wrapper


numba.njit = _unchecked(numba.njit)
torch.library.custom_op = _unchecked(torch.library.custom_op)

# An int is a float, a list is judged by the same item each time, and two hints that beartype cannot judge are anything:
# `Self` in a method alone, and `BinaryIO`, which BytesIO does not inherit from.
_CONF = (
    "is_pep484_tower=True, is_random=False, hint_overrides=beartype.FrozenDict("
    "{beartype.typing.Self: beartype.typing.Any, beartype.typing.BinaryIO: beartype.typing.Any})"
)
jaxtyping.install_import_hook("detect", f"beartype.beartype(conf=beartype.BeartypeConf({_CONF}))")

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed():
    """Each test draws the same numbers, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture
def unchecked(monkeypatch):
    """Without the checks, which Dynamo cannot trace, and with an empty memory: what it compiles a line is limited."""
    torch._dynamo.reset()
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    modules = [module for name, module in sys.modules.items() if name.partition(".")[0] == "detect"]
    kinds = {value for module in modules for value in vars(module).values() if isinstance(value, type)}
    for kind in filter(dataclasses.is_dataclass, kinds):
        if "__init__" in vars(kind) and hasattr(kind.__init__, "__wrapped__"):
            monkeypatch.setattr(kind, "__init__", kind.__init__.__wrapped__)
