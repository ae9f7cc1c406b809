"""Random state of training, so that runs resume exactly."""

from __future__ import annotations

import torch
from torch import Tensor


def get_random_state(device: torch.device) -> dict[str, Tensor]:
    """Return torch's random state on the CPU and on the device.

    Shuffling, scales and augmentation depend on seed and step only (`CanvasBatchSampler`), and nothing uses the
    generators of Python and NumPy.
    """
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(device: torch.device, state: dict[str, Tensor]) -> None:
    """Restore a state that `get_random_state` returned."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
