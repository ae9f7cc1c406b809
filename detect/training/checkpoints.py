"""Checkpoints are written so that the last good one survives."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from torch.utils._pytree import tree_leaves

from detect.errors import UserError
from detect.models import Detector
from detect.training.run_folder import complaint, removed, told


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, flushes to the disk, then takes the target's place: no crash loses the one before."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Writes a checkpoint; raises `UserError` when the disk does not take it."""
        path, size = Path(path), _size(checkpoint)
        draft = path.with_name(f".{path.name}.{os.getpid()}.part")
        with told(path, size), removed(draft):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with draft.open("wb") as file:
                    torch.save(checkpoint, file)
                    file.flush()
                    os.fsync(file.fileno())
            except RuntimeError as error:  # of torch's writer, which complains of the half-written file
                cause = error.__context__
                if isinstance(cause, OSError | KeyboardInterrupt):
                    raise cause from None
                if "write" not in str(error):
                    raise
                raise UserError(complaint(path, "the disk is full or not writable", size, full=True)) from None
            draft.replace(path)


def save_detector(model: Detector, card: dict[str, Any], path: Path) -> None:
    """Writes a checkpoint for `load_checkpoint`: without an optimiser, so that no training goes on with it."""
    weights = {f"model.{name}": value.cpu() for name, value in model.state_dict().items()}
    AtomicCheckpointIO().save_checkpoint({"detect": card, "state_dict": weights}, path)


def _size(checkpoint: dict[str, Any]) -> int:
    """The bytes of its tensors, each counted once."""
    tensors = {leaf.data_ptr(): leaf.nbytes for leaf in tree_leaves(checkpoint) if isinstance(leaf, torch.Tensor)}
    return sum(tensors.values())
