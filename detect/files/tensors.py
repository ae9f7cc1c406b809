"""Files of tensors, read without executing anything in them."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detect.errors import UserError


def load_torch(path: Path) -> Any:
    """Load what `torch.save` wrote, on the CPU, with torch's restricted unpickler.

    Raises:
        UserError: the file is a compressed zip, which unpacks to more than its size; `torch.save` never compresses.
        Exception: whatever torch raises for a file that it cannot read.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > path.stat().st_size:
            raise UserError(f"{path}: unpacks to more than its size, which torch.save never writes; get another file")
    return torch.load(path, map_location="cpu", weights_only=True)


def refuse_repeated(state: Mapping[str, Tensor], path: Path) -> None:
    """Raise `UserError` if a tensor has more elements than its storage, as a strided view of a few bytes can have."""
    for key, value in state.items():
        if value.numel() * value.itemsize > value.untyped_storage().nbytes():
            raise UserError(f"{path}: {key[:80]!r} has more numbers than are in the file; get another file")
