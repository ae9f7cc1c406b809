"""Reading state dicts of other projects, and matching them to our models."""

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
from detect.files.tensors import NO_SAFETENSORS, find_state_dict, load_torch, refuse_repeated
from detect.foreign_weights.pickles import read_pickle

State = Mapping[str, Tensor]
BATCHES = ".num_batches_tracked"
"""Suffix of a buffer that batch norms have and frozen batch norms do not."""


def read_content(path: Path) -> Any:
    """Read a file of weights, as tensors on the CPU or numpy arrays, without executing anything in it.

    `.pkl` is read as a pickle of numpy arrays, `.safetensors` by its library, and any other file as one of torch.

    Raises:
        UserError: the file is missing or unreadable, or would execute something.
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
        raise UserError(f"{path}: {NO_SAFETENSORS}, or save the weights as .pth") from None
    except UserError:
        raise
    except Exception as error:  # parsers raise any error for hostile bytes
        called = re.search(r"GLOBAL (\S+)", str(error))
        with path.open("rb") as file:
            head = file.read(64).lstrip().lower()
        if head.startswith((b"<!doctype", b"<html", b"version https://git-lfs")):
            kind = "a web page" if head.startswith(b"<") else "a pointer of Git LFS"
            raise UserError(f"{path}: {kind}, not the weights themselves; download the file again") from None
        if called and called[1].startswith(("ultralytics.", "models.")):  # those of newer and older versions
            raise UserError(f"{path}: a YOLO of Ultralytics, which is no YOLOX; give a file of YOLOX itself") from None
        reason = f"would call {called[1]}" if called else f"unreadable weights ({type(error).__name__})"
        raise UserError(f"{path}: {reason}; give a file with only a state dict") from None


def state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    """Return the state dict of a file's content: the whole content, or a part of it (see `find_state_dict`).

    Raises:
        UserError: there is no state dict, or a value is not a dense tensor or an array of numbers.
    """
    values = find_state_dict(content)
    if not isinstance(values, dict) or not values:
        raise UserError(f"{path}: has no state dict; give a file with the tensors of a model by name")
    state = {str(key): _tensor(value) for key, value in values.items()}
    for key, value in state.items():
        if value is None or value.layout != torch.strided or not value.is_cpu or value.is_complex():
            raise UserError(f"{path}: {key[:80]!r} is not a dense tensor; give a file with only a state dict")
    refuse_repeated(state, path)  # type: ignore[arg-type]
    return state  # type: ignore[return-value]


def _tensor(value: Any) -> Tensor | None:
    """Return a value as a tensor that shares its memory, so that an array with several names is stored once."""
    if isinstance(value, Tensor):
        return value.detach()
    if not isinstance(value, np.ndarray):
        return None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # it is only read
        try:
            return torch.from_numpy(value)
        except (TypeError, ValueError):  # torch does not have this dtype or byte order
            return None


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Tensors of a file that are not imported."""

    name: str
    reason: str
    tensors: int
    """Number of tensors."""
    numbers: int
    """Number of their elements."""


def leave_out(state: State, reasons: Mapping[str, tuple[str, str]]) -> tuple[dict[str, Tensor], tuple[LeftOut, ...]]:
    """Leave out the tensors that are not imported.

    Args:
        state: the state dict.
        reasons: name and reason of each group of tensors, by a regular expression for the start of their keys.

    Returns:
        The remaining state dict, and the groups that were left out.
    """
    kept = dict(state)
    left_out = []
    for pattern, (name, reason) in reasons.items():
        values = [kept.pop(key) for key in list(kept) if re.match(pattern, key)]
        if values:
            left_out.append(LeftOut(name, reason, len(values), sum(value.numel() for value in values)))
    return kept, tuple(left_out)


def match_state(
    state: State,
    model: nn.Module,
    rename: Callable[[str], str],
    change: Callable[[str, Tensor], Tensor],
    remedy: str,
    given: Collection[str] = (),
) -> dict[str, Tensor]:
    """Match another project's state dict to our model: each value to one key, and one value to each key.

    Batch counts are dropped if our norm is frozen.

    Args:
        state: the other project's state dict.
        model: our model.
        rename: returns our key for their key, or a string that is not a key of ours.
        change: returns our value from our key and their value.
        remedy: last part of each error message.
        given: our keys that need no value.

    Returns:
        The values by our keys.

    Raises:
        UserError: a key is missing, unknown or given twice, or its value has another shape or is not finite.
    """
    expected = model.state_dict()
    matched: dict[str, Tensor] = {}
    for theirs, value in state.items():
        ours = rename(theirs)
        if ours not in expected and theirs.endswith(BATCHES):
            continue
        if ours not in expected or ours in matched:
            raise UserError(f"{theirs}: {'given twice' if ours in matched else 'unknown key'}; {remedy}")
        if value.ndim:
            value = change(ours, value)
        if value.shape != expected[ours].shape:
            raise UserError(f"{theirs}: has shape {[*value.shape]} instead of {[*expected[ours].shape]}; {remedy}")
        if not value.isfinite().all():
            raise UserError(f"{theirs}: has values that are not finite; download the file again")
        matched[ours] = value
    missing = [key for key in expected if key not in matched and key not in given]
    if missing:
        raise UserError(f"{missing[0]}: no value for this and {len(missing) - 1} other keys; {remedy}")
    return matched


def rename_by_prefix(key: str, prefixes: Mapping[str, str]) -> str:
    """Replace the longest matching prefix of a key; return an empty string if no prefix matches."""
    matches = [prefix for prefix in prefixes if key.startswith(prefix)]
    if not matches:
        return ""
    prefix = max(matches, key=len)
    return prefixes[prefix] + key.removeprefix(prefix)
