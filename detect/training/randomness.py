"""The numbers that a model draws in training, and where they go on."""

from __future__ import annotations

import torch
from torch import Tensor


def get_random_state(device: torch.device) -> dict[str, Tensor]:
    """Torch's state, on the CPU and on the device; the rest follows from the seed and the step.

    Shuffles, scales and augmentations do (`CanvasBatchSampler`), and nothing draws from Python's or NumPy's numbers.
    """
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(device: torch.device, state: dict[str, Tensor]) -> None:
    """Draws from there on what was drawn from there."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
