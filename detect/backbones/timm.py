"""Any convolutional network of the timm package: HRNet, SE, CBAM and ECA networks, ConvNeXt, RegNet, MobileNet …"""

from __future__ import annotations

import importlib
from collections import OrderedDict
from dataclasses import field
from difflib import get_close_matches
from types import ModuleType
from typing import Any, Literal

from jaxtyping import Float
from pydantic import PositiveInt
from torch import Tensor, nn

from detect.backbones.backbone import CNN, Backbone, Colour, FeatureInfo, Network, WholeCNN, refuse_small
from detect.backbones.fpn import FPN
from detect.backbones.weights import FILES
from detect.errors import UserError
from detect.options import options

PYRAMID = (4, 8, 16, 32)
"""The strides of the maps that a pyramid takes."""


@options
class Timm(CNN):
    """A network by timm's name, such as `hrnet_w18`, `seresnet50` or `convnext_tiny`; needs `pip install timm`."""

    name: Literal["timm"] = field(default="timm", kw_only=True)
    model: str
    """timm's name of the network, without the tag of its weights."""
    fpn: bool = True
    """With a pyramid over the maps at strides 4, 8, 16 and 32. Without: the map at stride 16. Either way the box head
    brings the layers of a region."""
    fpn_channels: PositiveInt = 256
    """Width of the pyramid."""
    train_stages: Literal[0, 1] = 1
    """1: all of the network learns; 0: it stays as loaded."""

    @property
    def mean(self) -> Colour:  # type: ignore[override]
        """That of the network's published weights."""
        red, green, blue = (255.0 * value for value in self._published().mean)
        return red, green, blue

    @property
    def std(self) -> Colour:  # type: ignore[override]
        """That of the network's published weights."""
        red, green, blue = (255.0 * value for value in self._published().std)
        return red, green, blue

    @property
    def head(self) -> tuple[str, ...]:  # type: ignore[override]
        """Where timm has the classifier."""
        names = self._published().classifier
        return tuple(f"{name}." for name in ((names,) if isinstance(names, str) else names))

    def architecture(self) -> str:
        """timm's name."""
        return self.model

    def make(self, num_classes: int) -> Network:
        """The network as timm has it."""
        published = self._published()
        if self.weights is not None and not self.weights.endswith(FILES):
            raise UserError(
                f"weights: {self.weights}: download model.safetensors of https://huggingface.co/{published.hf_hub_id} "
                f"and give that file; of timm's weights only files are taken: {', '.join(FILES)}"
            )
        return _timm().create_model(self.model, num_classes=num_classes)

    def stages(self, network: Network) -> OrderedDict[str, nn.Sequential]:
        """All but the classifier, as one stage."""
        head = {name.removesuffix(".").partition(".")[0] for name in self.head}
        return OrderedDict(body=nn.Sequential(*(part for name, part in network.named_children() if name not in head)))

    def build(self) -> tuple[Backbone, None]:
        """The maps that timm's `features_only` gives, with or without a pyramid."""
        self._refuse_fixed(None)
        body: Any = _timm().create_model(self.model, features_only=True)
        strides, channels = body.feature_info.reduction(), body.feature_info.channels()
        wanted = PYRAMID if self.fpn else (16,)
        # Of several maps of one stride the last has seen the most.
        places = {stride: place for place, stride in enumerate(strides) if stride in wanted}
        if len(places) < len(wanted):
            raise UserError(
                f"backbone.model: {self.model} has maps at strides {', '.join(map(str, strides))}; "
                f"fpn {str(self.fpn).lower()} needs {', '.join(map(str, wanted))}"
            )
        if self.initialization is not None or self.weights is not None:
            _copy(self.network(), body)
        if self.train_stages == 0:
            _freeze(body)
        widths = [channels[places[stride]] for stride in wanted]
        fpn = FPN(widths, self.fpn_channels) if self.fpn else None
        return TimmBackbone(body, [places[stride] for stride in wanted], widths, fpn, self.mean, self.std), None

    def build_whole(self, size: int) -> WholeTimm:
        """The network up to its classifier."""
        refuse_small(size, 32)
        self._refuse_fixed(size)
        network = self.network()
        if self.train_stages == 0:
            _freeze(network)
        return WholeTimm(size, network)

    def _published(self) -> Any:
        """What timm knows of the network's published weights."""
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
                f"backbone.model: {self.model} takes squares of {published.input_size[-1]} pixels alone, and images "
                "have many sizes; take a convolutional network"
            )


class TimmBackbone(Backbone):
    """Some of the maps of a network, or the pyramid over them."""

    def __init__(
        self, body: nn.Module, places: list[int], channels: list[int], fpn: FPN | None, mean: Colour, std: Colour
    ) -> None:
        levels = [(fpn.channels, stride) for stride in (*PYRAMID, 64)] if fpn else [(channels[0], 16)]
        super().__init__(tuple(FeatureInfo(*level) for level in levels), mean, std)
        self.body, self.places, self.fpn = body, places, fpn

    def forward(self, pixels: Float[Tensor, "B 3 H W"]) -> list[Float[Tensor, "B _c _h _w"]]:
        """Five maps at strides 4 … 64, or one at stride 16."""
        maps = self.body(pixels)
        chosen = [maps[place] for place in self.places]
        return chosen if self.fpn is None else self.fpn(chosen)


class WholeTimm(WholeCNN):
    """The network without its classifier; what that would take is the one layer that describes a crop."""

    def __init__(self, size: int, network: Network) -> None:
        network.reset_classifier(0)
        super().__init__(size, {"pool5": getattr(network, "head_hidden_size", None) or network.num_features})
        self.network = network

    def forward_layers(self, crops: Float[Tensor, "N 3 p p"]) -> dict[str, Float[Tensor, "N _"]]:
        """What the classifier would take of every crop."""
        return {"pool5": self.network(crops)}


def _timm() -> ModuleType:
    try:
        import timm
    except ModuleNotFoundError:
        raise UserError("backbone: its networks are timm's, which is not installed; pip install timm") from None
    return timm


def _freeze(network: nn.Module) -> None:
    """As `norm.freeze`; timm's own batch norms, some of which have an activation inside, are for timm to freeze."""
    freeze_norms = importlib.import_module("timm.layers").freeze_batch_norm_2d
    freeze_norms(network).requires_grad_(False)


def _copy(network: nn.Module, body: nn.Module) -> None:
    """Give the weights of a whole network, in place, to the one that `features_only` has made of the same.

    timm makes it flat, `stages.0` becomes `stages_0`, or puts it one level down, as `model`.
    """
    whole = {key.replace(".", "_"): value for key, value in network.state_dict().items()}
    body.load_state_dict({key: whole[key.replace(".", "_").removeprefix("model_")] for key in body.state_dict()})
