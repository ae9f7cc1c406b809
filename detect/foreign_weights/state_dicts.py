"""Reading the state dict of another project's file, and fitting one to a network of ours."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from detect.errors import UserError
from detect.files.tensors import load_torch, refuse_repeated
from detect.foreign_weights.pickles import read_pickle

State = Mapping[str, Tensor]
BATCHES = ".num_batches_tracked"
"""What a batch norm has and a frozen one has not."""


def read_content(path: Path) -> Any:
    """What the file holds, tensors on the CPU or numpy's arrays; nothing in it is executed.

    `.pkl` is read as a pickle of numpy arrays, `.safetensors` by its own library, and all else as torch's.
    Raises `UserError` where that cannot be, or where the file would execute something.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; give one that ends in .pth, .pt, .pkl or .safetensors")
    if path.suffix == ".pkl":
        return read_pickle(path)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return load_torch(path)
    except ModuleNotFoundError:
        raise UserError(f"{path}: to read this format, pip install safetensors, or save the weights as .pth") from None
    except UserError:
        raise
    except Exception as error:  # whatever a parser of foreign bytes may raise
        called = re.search(r"GLOBAL (\S+)", str(error))
        what = f"would call {called[1]}" if called else f"no readable weights ({type(error).__name__})"
        raise UserError(f"{path}: {what}; give a file with the state dict alone") from None


def state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    """The state dict in a file's content: all of it, or what stands under `model` in a checkpoint of training.

    Raises `UserError` where there is none, or where a value is no plain tensor or array of numbers.
    """
    found = content.get("model", content) if isinstance(content, dict) else content
    if not isinstance(found, dict) or not found:
        raise UserError(f"{path}: holds no state dict; give a file with the tensors of a network by their names")
    state = {str(key): _tensor(value) for key, value in found.items()}
    for key, value in state.items():
        if value is None or value.layout != torch.strided or not value.is_cpu or value.is_complex():
            raise UserError(f"{path}: {key[:80]!r} is no plain tensor; give a file with the state dict alone")
    refuse_repeated(state, path)  # type: ignore[arg-type]
    return state  # type: ignore[return-value]


def _tensor(value: Any) -> Tensor | None:
    """The value as a tensor that shares its memory: however often a file names an array, there is one."""
    if isinstance(value, Tensor):
        return value.detach()
    if not isinstance(value, np.ndarray):
        return None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # nobody writes to it
        try:
            return torch.from_numpy(value)
        except (TypeError, ValueError):  # a dtype or an order of bytes that torch has not
            return None


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Tensors of a file that ours has no use for."""

    what: str
    why: str
    tensors: int
    numbers: int


def leave_out(state: State, reasons: Mapping[str, tuple[str, str]]) -> tuple[dict[str, Tensor], tuple[LeftOut, ...]]:
    """The state without the keys that a pattern of `reasons` matches; and for each pattern what went, and why."""
    kept = dict(state)
    gone = []
    for pattern, (what, why) in reasons.items():
        taken = [kept.pop(key) for key in list(kept) if re.match(pattern, key)]
        if taken:
            gone.append(LeftOut(what, why, len(taken), sum(value.numel() for value in taken)))
    return kept, tuple(gone)


def match_state(
    state: State,
    model: nn.Module,
    rename: Callable[[str], str],
    change: Callable[[str, Tensor], Tensor],
    remedy: str,
    given: Collection[str] = (),
) -> dict[str, Tensor]:
    """The values of `state` under our keys: each of them once, and one for each key of the model.

    Counts of batches go where our norm is frozen.

    Args:
        state: by the other project's keys.
        model: ours.
        rename: our key for one of theirs, or a name that no key of ours has.
        change: the value as ours has it, from our key and their value.
        remedy: ends the line of every error.
        given: keys of ours that need no value.

    Raises `UserError` with the key that is missing, not known, given twice, of another shape, or not finite.
    """
    wanted = model.state_dict()
    matched: dict[str, Tensor] = {}
    for theirs, value in state.items():
        ours = rename(theirs)
        if ours not in wanted and theirs.endswith(BATCHES):
            continue
        if ours not in wanted or ours in matched:
            raise UserError(f"{theirs}: {'given twice' if ours in matched else 'not in the network'}; {remedy}")
        if value.ndim:
            value = change(ours, value)
        if value.shape != wanted[ours].shape:
            raise UserError(f"{theirs}: {[*value.shape]} where {[*wanted[ours].shape]} is due; {remedy}")
        if not value.isfinite().all():
            raise UserError(f"{theirs}: holds values that are not finite; get the file again")
        matched[ours] = value
    missing = [key for key in wanted if key not in matched and key not in given]
    if missing:
        raise UserError(f"{missing[0]}: nothing given for it, nor for {len(missing) - 1} more keys of ours; {remedy}")
    return matched


def rename_by_prefix(key: str, prefixes: Mapping[str, str]) -> str:
    """The key with another beginning, the longest that fits; empty where none does."""
    fitting = [prefix for prefix in prefixes if key.startswith(prefix)]
    if not fitting:
        return ""
    prefix = max(fitting, key=len)
    return prefixes[prefix] + key.removeprefix(prefix)
