"""Any convolutional network of the timm package, such as HRNet, SENet, ECA, ConvNeXt, RegNet and MobileNet."""

from __future__ import annotations

import importlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import field
from difflib import get_close_matches
from types import ModuleType
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor, nn

from detect.backbones.backbone import (
    Backbone,
    BackboneOptions,
    Colour,
    CropNetwork,
    FeatureInfo,
    Network,
    Stages,
    refuse_small_crops,
)
from detect.backbones.weights import FILES
from detect.errors import UserError, install_command
from detect.options import options


@options
class TimmOptions(BackboneOptions):
    """A network by timm's name, such as `hrnet_w18`, `seresnet50` or `convnext_tiny`; needs the extra `timm`."""

    name: Literal["timm"] = field(default="timm", kw_only=True)
    model: str
    """The network's name in timm, without the tag of its weights."""
    train_stages: Literal[0, 1] = 1
    """1: train the whole network; 0: keep it as loaded."""

    @property
    def mean(self) -> Colour:  # type: ignore[override]
        """Mean of each channel for the network's published weights."""
        red, green, blue = (255.0 * value for value in self._published().mean)
        return red, green, blue

    @property
    def std(self) -> Colour:  # type: ignore[override]
        """Standard deviation of each channel for the network's published weights."""
        red, green, blue = (255.0 * value for value in self._published().std)
        return red, green, blue

    @property
    def classifier_keys(self) -> tuple[str, ...]:  # type: ignore[override]
        """Prefixes of the classifier's keys in timm."""
        names = self._published().classifier
        return tuple(f"{name}." for name in ((names,) if isinstance(names, str) else names))

    def architecture(self) -> str:
        """Return timm's name."""
        return self.model

    def make(self, num_classes: int) -> Network:
        """Return timm's network."""
        published = self._published()
        if self.weights is not None and not self.weights.endswith(FILES):
            raise UserError(
                f"weights: {self.weights}: download model.safetensors of https://huggingface.co/{published.hf_hub_id} "
                f"and give that file; timm's weights are read from files only: {', '.join(FILES)}"
            )
        return _timm().create_model(self.model, num_classes=num_classes)

    def stages(self, network: Network) -> Stages:
        """Return all layers but the classifier as one stage."""
        head = {name.removesuffix(".").partition(".")[0] for name in self.classifier_keys}
        return OrderedDict(body=nn.Sequential(*(part for name, part in network.named_children() if name not in head)))

    def build(self, multi_scale: bool) -> tuple[TimmBackbone, None]:
        """Return timm's `features_only` network, with all its levels or only the one of stride 16."""
        self._refuse_fixed(None)
        body: Any = _timm().create_model(self.model, features_only=True)
        info = body.feature_info
        levels = {
            name: FeatureInfo(channels, stride)
            for name, channels, stride in zip(info.module_name(), info.channels(), info.reduction(), strict=True)
        }
        if not multi_scale:
            single = [name for name, level in levels.items() if level.stride == 16][-1:]
            if not single:
                strides = ", ".join(str(level.stride) for level in levels.values())
                raise UserError(f"backbone.model: {self.model} has maps at strides {strides}, not 16; set neck to fpn")
            levels = {single[0]: levels[single[0]]}
        if self.initialization is not None or self.weights is not None:
            _copy(self.network(), body)
        if self.train_stages == 0:
            _freeze(body)
        return TimmBackbone(body, levels, info.module_name(), self.mean, self.std), None

    def build_crop_network(self, size: int) -> TimmCropNetwork:
        """Return the network up to its classifier."""
        refuse_small_crops(size, 32)
        self._refuse_fixed(size)
        network = self.network()
        if self.train_stages == 0:
            _freeze(network)
        return TimmCropNetwork(size, network)

    def _published(self) -> Any:
        """Return timm's configuration of the network's published weights."""
        timm = _timm()
        if not timm.is_model(self.model):
            near = get_close_matches(self.model, timm.list_models(), n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else "see timm.list_models()"
            raise UserError(f"backbone.model: timm has no network named {self.model!r}; {hint}")
        return timm.get_pretrained_cfg(self.model)

    def _refuse_fixed(self, size: int | None) -> None:
        published = self._published()
        if published.fixed_input_size and size != published.input_size[-1]:
            raise UserError(
                f"backbone.model: {self.model} takes only squares of {published.input_size[-1]} pixels, but images "
                "have many sizes; choose a convolutional network"
            )


class TimmBackbone(Backbone):
    """A network that timm has cut into feature maps.

    Args:
        body: timm's `features_only` network.
        levels: the maps to return.
        names: names of all maps that `body` returns.
        mean: mean of each channel, on the scale 0 … 255.
        std: standard deviation of each channel, on the scale 0 … 255.
    """

    def __init__(
        self, body: nn.Module, levels: dict[str, FeatureInfo], names: Sequence[str], mean: Colour, std: Colour
    ) -> None:
        super().__init__(levels, mean, std)
        self.body, self.names = body, tuple(names)

    def forward(self, pixels: Float[Tensor, "B 3 H W"]) -> dict[str, Float[Tensor, "B _c _h _w"]]:
        """Compute the feature maps of `levels`."""
        maps = zip(self.names, self.body(pixels), strict=True)
        return {name: features for name, features in maps if name in self.levels}


class TimmCropNetwork(CropNetwork):
    """The network without its classifier; the classifier's input is the only choice for the features of a crop."""

    def __init__(self, size: int, network: Network) -> None:
        network.reset_classifier(0)
        super().__init__(size, {"pool5": getattr(network, "head_hidden_size", None) or network.num_features})
        self.network = network

    def forward_layers(self, crops: Float[Tensor, "N 3 p p"]) -> dict[str, Float[Tensor, "N _"]]:
        """Compute the input of the classifier for each crop."""
        return {"pool5": self.network(crops)}


def _timm() -> ModuleType:
    try:
        import timm
    except ModuleNotFoundError:
        raise UserError(f"backbone: the package timm is not installed: {install_command('timm')}") from None
    return timm


def _freeze(network: nn.Module) -> None:
    """Freeze like `norm.freeze`, with timm's function, since some of its batch norms include an activation."""
    freeze_norms = importlib.import_module("timm.layers").freeze_batch_norm_2d
    freeze_norms(network).requires_grad_(False)


def _copy(network: nn.Module, body: nn.Module) -> None:
    """Copy the weights of a whole network into its `features_only` form.

    timm flattens its names (`stages.0` becomes `stages_0`) or nests it one level deeper, as `model`.
    """
    state = {key.replace(".", "_"): value for key, value in network.state_dict().items()}
    body.load_state_dict({key: state[key.replace(".", "_").removeprefix("model_")] for key in body.state_dict()})
