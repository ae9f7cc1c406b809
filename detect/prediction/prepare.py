"""Preparing a trained detector for fast prediction on its device."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Literal

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from detect.backbones.norm import FrozenBatchNorm2d
from detect.backbones.timm import TimmBackbone, TimmCropNetwork
from detect.devices import warn_of_slow_bf16
from detect.models import Detector
from detect.ops.packed_convolution import PackedConvolution, is_packable
from detect.ops.winograd import WinogradConv2d, is_winograd

Precision = Literal["fp32", "bf16"]


def prepare(model: Detector, precision: Precision = "fp32", compile: bool = False) -> Detector:
    """Return a copy for prediction: batch norms folded into convolutions, channels last, weights in `precision`.

    Boxes and scores stay in float32. In float32 on the CPU, unless the backbone is compiled, 3×3 convolutions use
    Winograd's algorithm, and the others have packed weights and are one operation with the SiLU that follows them.

    Args:
        model: the trained detector; it is not changed.
        precision: precision of the weights.
        compile: run backbone and neck through `torch.compile`, which compiles them for each canvas size.
    """
    model = copy.deepcopy(model).eval().requires_grad_(False)
    fold_norms(model)
    if precision == "bf16":
        warn_of_slow_bf16(next(model.parameters()).device)
        fp32 = {parameter for module in model.fp32_modules() for parameter in module.parameters()}
        for parameter in model.parameters():
            if parameter not in fp32:
                parameter.data = parameter.data.to(torch.bfloat16)
    model.to_memory_format(torch.channels_last)
    if compile:
        for part in (model.backbone, model.neck):
            if part is not None:
                part.compile(dynamic=False)
    else:
        replace_convolutions(model)
    return model


def fold_norms(module: nn.Module) -> None:
    """Fold each batch norm (in eval mode) into the convolution before it, in place.

    The norms of a network of timm, whose children may run in another order than they are listed, are folded only if
    its output on one random image stays the same.
    """
    if isinstance(module, TimmBackbone | TimmCropNetwork):
        folded = copy.deepcopy(module)
        for child in folded.children():
            fold_norms(child)
        if _computes_the_same(module, folded):
            for name, child in folded.named_children():
                setattr(module, name, child)
        return
    children = list(module.named_children())
    for (_, first), (name, second) in pairwise(children):
        if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d | nn.SyncBatchNorm | FrozenBatchNorm2d):
            assert second.running_mean is not None and second.running_var is not None
            statistics = second.running_mean, second.running_var, second.eps
            weight, bias = fuse_conv_bn_weights(first.weight, first.bias, *statistics, second.weight, second.bias)
            first.weight, first.bias = weight, bias
            # timm's norms may include a dropout, which does nothing in eval mode, and an activation.
            setattr(module, name, getattr(second, "act", nn.Identity()))
    for _, child in children:
        fold_norms(child)


def replace_convolutions(module: nn.Module) -> None:
    """Replace each convolution by a faster one, together with the SiLU that follows it, in place."""
    in_order = not isinstance(module, TimmBackbone | TimmCropNetwork)  # timm's children may run in another order
    children = [(name, child) for name, child in module.named_children() if not isinstance(child, nn.Identity)]
    for (name, child), (next_name, following) in zip(children, [*children[1:], ("", None)], strict=False):
        if in_order and isinstance(following, nn.SiLU) and is_packable(child):
            setattr(module, name, PackedConvolution(child, "swish"))
            setattr(module, next_name, nn.Identity())
        elif isinstance(child, nn.Conv2d) and is_winograd(child):
            setattr(module, name, WinogradConv2d.of(child))
        elif is_packable(child):
            setattr(module, name, PackedConvolution(child))
        else:
            replace_convolutions(child)
            if type(child) is nn.Sequential and len(layers := _layers(child)) == 1:
                setattr(module, name, layers[0])  # each call of a module takes microseconds


def _layers(sequence: nn.Sequential) -> list[nn.Module]:
    return [layer for layer in sequence if not isinstance(layer, nn.Identity)]


@torch.no_grad()
def _computes_the_same(network: TimmBackbone | TimmCropNetwork, other: TimmBackbone | TimmCropNetwork) -> bool:
    """Return whether two networks differ by at most 1e-4 of the largest value of each output, in double precision."""
    side = network.pooled if isinstance(network, TimmCropNetwork) else 64
    image = torch.randn(1, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    outputs = [copy.deepcopy(one).to("cpu", torch.float64).eval()(image) for one in (network, other)]
    pairs = zip(*(one.values() if isinstance(one, dict) else [one] for one in outputs), strict=True)
    return all(bool((one - two).abs().max() <= 1e-4 * one.abs().max()) for one, two in pairs)
