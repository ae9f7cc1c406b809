"""Checkpoints are written so that the last good one survives."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from detect.errors import UserError
from detect.models import Detector


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, flushes to the disk, then takes the target's place: no crash loses the one before."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Writes a checkpoint; raises `UserError` when the disk does not take it."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            with draft.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        except (OSError, RuntimeError) as error:
            if isinstance(error.__context__, KeyboardInterrupt):  # torch's writer complains of the half-written file
                raise error.__context__ from None
            if isinstance(error, RuntimeError) and "write" not in str(error):
                raise
            reason = error.strerror if isinstance(error, OSError) else "the disk is full or not writable"
            raise UserError(
                f"{path}: the checkpoint could not be written: {reason}; free some space and --resume"
            ) from None
        finally:
            with contextlib.suppress(FileNotFoundError):
                draft.unlink()


def save_detector(model: Detector, card: dict[str, Any], path: Path) -> None:
    """Writes a checkpoint for `load_checkpoint`: without an optimiser, so that no training goes on with it."""
    weights = {f"model.{name}": value.cpu() for name, value in model.state_dict().items()}
    AtomicCheckpointIO().save_checkpoint({"detect": card, "state_dict": weights}, path)
