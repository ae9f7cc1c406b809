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
"""Mistake and remedy for a file of safetensors without its package."""


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
