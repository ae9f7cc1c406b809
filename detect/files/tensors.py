"""Reading files of tensors without executing anything."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detect.errors import UserError, install_command

NO_SAFETENSORS = f"safetensors is not installed: {install_command('safetensors')}"
"""Message about a safetensors file if the package is missing."""

WRAPPERS = (
    *("model_ema", "ema_state_dict", "state_dict_ema", "ema_state", "ema_model", "ema"),
    *("model_state_dict", "state_dict", "model", "net", "network", "module"),
)
"""Keys under which programs store a state dict in a training checkpoint; averaged weights (EMA) are preferred."""
PREFIXES = ("module.", "model.")
"""Prefixes of all keys of a network in `DistributedDataParallel`, an average, or a Lightning module."""
MAX_DEPTH = 3


def load_torch(path: Path) -> Any:
    """Load a file of `torch.save` onto the CPU with torch's restricted unpickler.

    Raises:
        UserError: the file is a compressed zip, which `torch.save` never writes.
        Exception: torch cannot read the file; it raises exceptions of many types.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > path.stat().st_size:
            raise UserError(f"{path}: unpacks to more than its size, which torch.save never writes; get another file")
    return torch.load(path, map_location="cpu", weights_only=True)


def refuse_repeated(state: Mapping[str, Tensor], path: Path) -> None:
    """Raise `UserError` if a tensor has more elements than its storage, like a strided view of a few bytes."""
    for key, value in state.items():
        if value.numel() * value.itemsize > value.untyped_storage().nbytes():
            raise UserError(f"{path}: {key[:80]!r} has more numbers than are in the file; get another file")


def find_state_dict(content: Any) -> Any:
    """Return the state dict within the content of a training checkpoint, at most `MAX_DEPTH` levels deep.

    Prefixes that all keys have, and those of compiled modules, are removed. Content without a state dict is returned
    as it is; values are not checked.
    """
    for _ in range(MAX_DEPTH):
        inner = (
            [content[key] for key in WRAPPERS if isinstance(content.get(key), dict)]
            if isinstance(content, dict)
            else []
        )
        if not inner:
            break
        content = next(filter(None, inner), inner[0])
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        return content
    state = {key.replace("_orig_mod.", ""): value for key, value in content.items() if key != "n_averaged"}
    while prefix := next((one for one in PREFIXES if state and all(key.startswith(one) for key in state)), ""):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state
