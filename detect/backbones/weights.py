"""Loading weights of a whole network from a local file: torchvision's or the user's own."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import get_model_weights

from detect.errors import UserError
from detect.files.tensors import NO_SAFETENSORS, find_state_dict, load_torch

FILES = (".pth", ".pt", ".safetensors", ".ckpt")
NETWORK = "model.network."
"""Prefix of the network's keys in a checkpoint of a classifier."""
log = logging.getLogger(__name__)


def load_weights(network: nn.Module, weights: str, architecture: str, classifier_keys: tuple[str, ...]) -> None:
    """Load weights into a network in torchvision's form, except for its classification layers, and log what was loaded.

    `weights` is a file with a state dict that has torchvision's keys, a checkpoint of a classifier that `detect train`
    wrote, or the name of published weights, with or without its class: `ResNet50_Weights.IMAGENET1K_V1`,
    `IMAGENET1K_V1`, `DEFAULT`. A name is looked up in torch.hub's folder of checkpoints and never downloaded.
    `architecture` is torchvision's name of the network, such as `resnet50`; keys with a prefix of `classifier_keys` are
    left out.

    Raises:
        UserError: the name or file does not exist, the file is not a plain state dict (nothing in it is executed), or
            keys, shapes or values do not fit.
    """
    is_file = weights.endswith(FILES)
    path = Path(weights).expanduser() if is_file else _published(weights, architecture, network)
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a state dict as {', '.join(FILES)}, or a name of torchvision's")
    load_state(network, read_state(path), path, architecture, classifier_keys)


def refuse_names(weights: str | None, architecture: str) -> None:
    """Raise `UserError` if `weights` is a name, for a network that torchvision does not have."""
    if weights is not None and not weights.endswith(FILES):
        raise UserError(f"weights: {weights}: torchvision has none for {architecture}; give a {', '.join(FILES)} file")


def load_state(
    network: nn.Module, content: dict[str, Tensor], path: Path, architecture: str, classifier_keys: tuple[str, ...]
) -> None:
    """Load the state dict of a file like `load_weights`, and log what was loaded.

    Raises:
        UserError: keys, shapes or values do not fit; the message names `path`.
    """
    state = {key: value for key, value in content.items() if not key.startswith(classifier_keys)}
    _check(network, state, path, architecture, classifier_keys)
    network.load_state_dict(state, strict=False)
    log.info("%s → %s", path, architecture)
    for line in _table(content, classifier_keys):
        log.info("%s", line)


def _table(content: dict[str, Tensor], classifier_keys: tuple[str, ...]) -> list[str]:
    """Return a table of the parts of a file, with the number of tensors and whether they were loaded."""
    parts: dict[tuple[str, bool], list[int]] = {}
    for key, value in content.items():
        parts.setdefault((key.partition(".")[0], key.startswith(classifier_keys)), []).append(value.numel())
    rows = [("part", "tensors", "numbers", "")]
    for (part, is_head), numbers in parts.items():
        status = "left out: classes of its training data" if is_head else "loaded"
        rows.append((part, f"{len(numbers)}", f"{sum(numbers):,}", status))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [f"  {a:{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}  {d}".rstrip() for a, b, c, d in rows]


def _published(name: str, architecture: str, network: nn.Module) -> Path:
    """Return the path where torch.hub stores the weights of this name."""
    names = get_model_weights(architecture)
    # Weights without categories also lack the fully connected layers, which VGG's box head needs.
    published = {key: entry for key, entry in names.__members__.items() if entry.meta["categories"]}
    entry = published.get(name.removeprefix(f"{names.__name__}."))
    if entry is None:
        raise UserError(f"weights: {name}: give one of {', '.join(published)}, or a {', '.join(FILES)} file")
    if any(isinstance(module, nn.GroupNorm | nn.InstanceNorm2d) for module in network.modules()):
        raise UserError(f"weights: {name} are for batch norm; set norm to frozen or batch, or give a file")
    path = Path(torch.hub.get_dir(), "checkpoints", entry.url.rpartition("/")[2])
    if not path.is_file():
        by_hand = f"download {entry.url} to {path}"
        raise UserError(f"weights: {name} are not on this machine; run detect weights download {entry}, or {by_hand}")
    return path


def read_state(path: Path) -> dict[str, Tensor]:
    """Return the state dict of a file; nothing in it is executed.

    Raises:
        UserError: the file is unreadable or holds more than a state dict.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = load_torch(path)
            state = _classifier_weights(state, path) if path.suffix == ".ckpt" else find_state_dict(state)
    except ModuleNotFoundError as error:
        raise UserError(f"{path}: {NO_SAFETENSORS}, or save the weights as .pth") from error
    except UserError:
        raise
    except Exception as error:  # parsers of untrusted bytes raise anything
        raise UserError(f"{path}: no readable weights ({type(error).__name__}); get the file again") from error

    if not isinstance(state, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) and value.layout == torch.strided and value.is_cpu
        for key, value in state.items()
    ):
        raise UserError(f"{path}: holds more than a state dict of tensors; save the network's state_dict() alone")
    return state


def _classifier_weights(content: Any, path: Path) -> dict[str, Tensor]:
    """Return the network's weights in a classifier's checkpoint. Raise `UserError` if it is not one."""
    state = content.get("state_dict", {}) if isinstance(content, dict) else {}
    network = {key.removeprefix(NETWORK): value for key, value in state.items() if key.startswith(NETWORK)}
    if not network:
        raise UserError(f"{path}: not a checkpoint of a classifier; give one, or a state dict of the network alone")
    return network


def _check(
    network: nn.Module, state: dict[str, Tensor], path: Path, architecture: str, classifier_keys: tuple[str, ...]
) -> None:
    wanted = {key: value for key, value in network.state_dict().items() if not key.startswith(classifier_keys)}
    # Old files lack batch norm's count of batches, and frozen batch norm has none.
    missing, unexpected = (
        [key for key in keys if key not in others and not key.endswith("num_batches_tracked")]
        for keys, others in ((wanted, state), (state, wanted))
    )
    if missing or unexpected:
        counts = [
            f"{len(keys)} keys are {problem}, {keys[0]!r} first"
            for keys, problem in ((missing, "missing"), (unexpected, "unexpected"))
            if keys
        ]
        raise UserError(f"{path}: does not fit {architecture}: {'; '.join(counts)}; check depth and norm")

    for key in wanted.keys() & state.keys():
        value, shape = state[key], wanted[key].shape
        if value.shape != shape or value.is_complex():
            raise UserError(f"{path}: {key} is {value.dtype} {[*value.shape]}, not {[*shape]}; check depth and norm")
        if not value.float().isfinite().all():
            raise UserError(f"{path}: {key} holds values that are not finite; get another file")
