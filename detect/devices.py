"""Choice of the device, and its support of bf16."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import torch
from torch import distributed

Accelerator = Literal["auto", "cpu", "gpu"]
Movable = TypeVar("Movable")
"""A tensor, or one of the structures of tensors."""
log = logging.getLogger(__name__)


def choose_device(accelerator: Accelerator = "auto") -> torch.device:
    """Return this process's CUDA device if there is one and `accelerator` allows it, else the CPU.

    Under torchrun each process of a machine uses the CUDA device of its local rank, or the first one if a launcher
    shows each process its own device only.
    """
    if accelerator == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    rank = os.environ.get("LOCAL_RANK")
    if rank is None:
        return torch.device("cuda")
    return torch.device("cuda", int(rank) if int(rank) < torch.cuda.device_count() else 0)


def multiplies_bf16(device: torch.device) -> bool:
    """Return whether the device has instructions for bf16; others emulate it, many times slower than fp32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def warn_of_slow_bf16(device: torch.device) -> None:
    """Log a warning if the device has no instructions for bf16."""
    if not multiplies_bf16(device):
        log.warning("precision: this %s emulates bf16, many times slower than fp32", device.type)


def to_device(value: Movable, device: torch.device) -> Movable:
    """Return a copy on a device of a tensor or structure; a copy to a GPU does not wait for the GPU's earlier work."""
    source: Any = value
    return source.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else source.to(device)


def start_copy(device: torch.device, *values: Any) -> tuple[list[Any], Callable[[], None]]:
    """Start copying tensors or structures, or None, from a device to the CPU.

    Returns:
        The copies, and a function that waits until they are complete.
    """
    copies = [value if value is None else value.to("cpu", non_blocking=True) for value in values]
    if device.type != "cuda":
        return copies, lambda: None
    copied = torch.cuda.Event()
    copied.record(torch.cuda.current_stream(device))  # the default is the current device's stream
    return copies, copied.synchronize


def is_distributed() -> bool:
    """Return whether this process is one of a process group."""
    return distributed.is_available() and distributed.is_initialized()
