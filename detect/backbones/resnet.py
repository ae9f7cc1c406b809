"""ResNet (He et al. 2016), cut after stage 4 (C4, the paper's appendix A) or given whole: to a pyramid, or dilated."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import field
from typing import Literal

from jaxtyping import Float
from pydantic import PositiveInt
from torch import Tensor, nn
from torchvision.models import get_model

from detect.backbones.backbone import (
    CNN,
    AveragingTrunk,
    Backbone,
    FeatureInfo,
    Network,
    SingleScaleBackbone,
    TrainStages,
    Trunk,
    WholeAveraging,
    WholeCNN,
    freeze_bottom,
    refuse_small,
)
from detect.backbones.fpn import FPN
from detect.backbones.norm import Norm, norm_layer
from detect.errors import UserError
from detect.options import options


@options
class ResNet(CNN):
    """ResNet of 18 … 152 layers, in torchvision's form but for what is chosen below."""

    head = ("fc.",)

    name: Literal["resnet"] = field(default="resnet", kw_only=True)
    depth: Literal[18, 34, 50, 101, 152] = 50
    fpn: bool = True
    """With the pyramid: maps at strides 4, 8, 16, 32 and 64, and no trunk. Without: one map at stride 16 (C4), and
    stage 5 with its average pool as the trunk, which takes regions of 14×14."""
    fpn_channels: PositiveInt = 256
    """Width of the pyramid; the paper has 256."""
    fpn_top: Literal[4, 5] = 5
    """The last stage in the pyramid. 4 leaves stage 5 out, and the pyramid ends at stride 32: enough for images of a
    hundred pixels, all of which a cell of stage 4 sees."""
    dilated: bool = False
    """Without the pyramid: stage 5 keeps stride 16, its 3×3 convolutions dilated by 2, and is the map; no trunk is left
    (DC5: Dai et al. 2017, "Deformable Convolutional Networks", §3)."""
    stride_in_1x1: bool = False
    """The stride of a bottleneck is that of its first 1×1 convolution, as in the paper's own weights; torchvision has
    it in the 3×3 convolution."""
    norm: Norm = "frozen"
    """Frozen statistics mean something only with weights, or in a checkpoint; from scratch, take `batch` or `group`.
    The pyramid has the norm of the network, but none where that is frozen, as published detectors have it."""
    train_stages: TrainStages = 3
    """How many of the five stages learn, counted from res5; the others stay as loaded. The first is conv1."""

    def architecture(self) -> str:
        """resnet18 … resnet152."""
        return f"resnet{self.depth}"

    def make(self, num_classes: int) -> Network:
        """torchvision's network, with the chosen norm, strides and dilation; none of them changes a name or a shape.

        Raises `UserError` where there is no 1×1 convolution that could have the stride.
        """
        network = get_model(self.architecture(), norm_layer=norm_layer(self.norm), num_classes=num_classes)
        if self.stride_in_1x1:
            _stride_in_1x1(network, self.depth)
        if self.dilated:
            _dilate(network.layer4)
        return network

    def stages(self, network: Network) -> OrderedDict[str, nn.Sequential]:
        """The five stages, by torchvision's names; the stem's own layers have them too."""
        stem = OrderedDict((name, getattr(network, name)) for name in ("conv1", "bn1", "relu", "maxpool"))
        stages = OrderedDict(stem=nn.Sequential(stem))
        for name in ("layer1", "layer2", "layer3", "layer4"):
            stages[name] = getattr(network, name)
        return stages

    def build(self) -> tuple[Backbone, Trunk | None]:
        """The network with a pyramid and no trunk, dilated and without a trunk, or cut in two after stage 4."""
        if self.dilated and self.fpn:
            raise UserError("model.backbone.dilated: a pyramid needs stage 5 at stride 32; set fpn to false")
        stages, channels = self._parts()
        if self.fpn:
            if self.fpn_top == 4:
                stages.popitem()
                channels.pop()
            norm = None if self.norm in ("frozen", "none") else self.norm
            return ResNetFPN(stages, FPN(channels, self.fpn_channels, norm)), None
        if self.dilated:
            return SingleScaleBackbone(stages, channels[-1]), None
        _, res5 = stages.popitem()
        return SingleScaleBackbone(stages, channels[-2]), AveragingTrunk(res5, channels[-2], channels[-1])

    def build_whole(self, size: int) -> WholeCNN:
        """The network with its average pool; `fpn` and `fpn_channels` have no say, since crops need no pyramid."""
        refuse_small(size, 1)
        stages, channels = self._parts()
        return WholeAveraging(size, stages, channels[-1])

    def _parts(self) -> tuple[OrderedDict[str, nn.Sequential], list[int]]:
        """The five stages with what is frozen, and the channels of the last four."""
        stages = self.stages(self.network())
        freeze_bottom(list(stages.values()), self.train_stages)
        return stages, [64, 128, 256, 512] if self.depth < 50 else [256, 512, 1024, 2048]


class ResNetFPN(Backbone):
    """C2 … C5 of a ResNet, made P2 … P6 by a pyramid; with C5 left out, C2 … C4 made P2 … P5."""

    def __init__(self, stages: OrderedDict[str, nn.Sequential], fpn: FPN) -> None:
        super().__init__(tuple(FeatureInfo(fpn.channels, 2 << stage) for stage in range(1, len(stages) + 1)))
        self.body = nn.ModuleDict(stages)
        self.fpn = fpn

    def forward(self, pixels: Float[Tensor, "B 3 H W"]) -> list[Float[Tensor, "B _c _h _w"]]:
        """Five maps, 256 channels wide unless chosen otherwise, at strides 4, 8, 16, 32 and 64; without C5 four."""
        stem, *stages = self.body.values()
        features = stem(pixels)
        maps = []
        for stage in stages:
            features = stage(features)
            maps.append(features)
        return self.fpn(maps)


def _stride_in_1x1(network: Network, depth: int) -> None:
    """Moves, in place, the stride of every bottleneck from its second convolution to the first."""
    if depth < 50:
        raise UserError(f"model.backbone.stride_in_1x1: ResNet-{depth} has no bottlenecks; leave it out")
    for stage in (network.layer2, network.layer3, network.layer4):
        block = stage[0]
        block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride


def _dilate(stage: nn.Module) -> None:
    """Takes, in place, the stride from a stage; its convolutions then look twice as far.

    All of them do, as in detectron2. The first of torchvision's `replace_stride_with_dilation` does not.
    """
    for layer in stage.modules():
        if isinstance(layer, nn.Conv2d):
            layer.stride = (1, 1)
            if layer.kernel_size == (3, 3):
                layer.dilation = layer.padding = (2, 2)
