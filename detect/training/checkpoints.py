"""Checkpoints of Lightning, written atomically."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from torch.utils._pytree import tree_leaves

from detect.checkpoint import save_torch
from detect.training.run_folder import disk_errors


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints atomically: no crash loses the previous checkpoint."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write a checkpoint. Raise `UserError` if it cannot be written."""
        path, size = Path(path), _size(checkpoint)
        with disk_errors(path, size):
            save_torch(checkpoint, path)


def _size(checkpoint: dict[str, Any]) -> int:
    """Return the number of bytes of all tensors, each counted once."""
    tensors = {leaf.data_ptr(): leaf.nbytes for leaf in tree_leaves(checkpoint) if isinstance(leaf, torch.Tensor)}
    return sum(tensors.values())
