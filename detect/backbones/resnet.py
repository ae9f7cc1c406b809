"""ResNet (He et al. 2016, "Deep Residual Learning for Image Recognition")."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import field
from typing import Literal

from torch import nn
from torchvision.models import get_model

from detect.backbones.backbone import (
    AveragedCropNetwork,
    BackboneOptions,
    BoxHead,
    FeatureInfo,
    Network,
    StageBoxHead,
    StagedBackbone,
    Stages,
    TrainStages,
    refuse_small_crops,
)
from detect.backbones.norm import Norm, norm_layer
from detect.errors import UserError
from detect.options import options


@options
class ResNetOptions(BackboneOptions):
    """ResNet of 18 … 152 layers in torchvision's form, unless the options below change it."""

    classifier_keys = ("fc.",)

    name: Literal["resnet"] = field(default="resnet", kw_only=True)
    depth: Literal[18, 34, 50, 101, 152] = 50
    """Number of layers; from 50 on, with bottlenecks."""
    last_stage: Literal[4, 5] = 5
    """Last stage of the backbone under a neck. 4 leaves stage 5 out, so that a pyramid ends at stride 32: enough for
    images of a hundred pixels, which fit into the receptive field of a cell of stage 4."""
    dilated: bool = False
    """Without a neck: stage 5 keeps stride 16, its 3×3 convolutions are dilated by 2, and it is the feature map; no
    layers remain for a box head (DC5: Dai et al. 2017, "Deformable Convolutional Networks", §3)."""
    stride_in_1x1: bool = False
    """Put the stride of a bottleneck in its first 1×1 convolution, as in the paper's own weights; torchvision has it in
    the 3×3 convolution."""
    norm: Norm = "frozen"
    """Frozen statistics make sense only with weights or in a checkpoint; from scratch, use `batch` or `group`."""
    train_stages: TrainStages = 3
    """Number of the five stages conv1, res2 … res5 that are trained, counted from res5; the others stay as loaded."""

    def architecture(self) -> str:
        """Return resnet18 … resnet152."""
        return f"resnet{self.depth}"

    def make(self, num_classes: int) -> Network:
        """Return torchvision's network with the chosen norm, strides and dilation; names and shapes of weights stay.

        Raises:
            UserError: `stride_in_1x1` is set for a network without bottlenecks.
        """
        network = get_model(self.architecture(), norm_layer=norm_layer(self.norm), num_classes=num_classes)
        if self.stride_in_1x1:
            _stride_in_1x1(network, self.depth)
        if self.dilated:
            _dilate(network.layer4)
        return network

    def stages(self, network: Network) -> Stages:
        """Return the five stages; they and the layers of the stem have torchvision's names."""
        stem = OrderedDict((name, getattr(network, name)) for name in ("conv1", "bn1", "relu", "maxpool"))
        stages = OrderedDict(stem=nn.Sequential(stem))
        for name in ("layer1", "layer2", "layer3", "layer4"):
            stages[name] = getattr(network, name)
        return stages

    @property
    def levels(self) -> dict[str, FeatureInfo]:
        """C2 … C5, the outputs of stages 2 … 5."""
        widths = (64, 128, 256, 512) if self.depth < 50 else (256, 512, 1024, 2048)
        strides = (4, 8, 16, 16 if self.dilated else 32)
        levels = zip(widths, strides, strict=True)
        return {f"layer{i}": FeatureInfo(*level) for i, level in enumerate(levels, start=1)}

    def build(self, multi_scale: bool) -> tuple[ResNet, BoxHead | None]:
        """Return all levels; or stage 4 (C4) with stage 5 as box head (appendix A), or the dilated stage 5 (DC5)."""
        if self.dilated and multi_scale:
            raise UserError("backbone.dilated: a neck needs stage 5 at stride 32; leave it out, or set neck to null")
        backbone, box_head = ResNet(self), None
        if multi_scale:
            if self.last_stage == 4:
                backbone.pop_stage()
            return backbone, None
        if not self.dilated:
            levels = self.levels
            box_head = StageBoxHead(backbone.pop_stage(), levels["layer3"].channels, levels["layer4"].channels)
        backbone.keep_last_level()
        return backbone, box_head

    def build_crop_network(self, size: int) -> AveragedCropNetwork:
        """Return all stages with their average pool."""
        refuse_small_crops(size, 1)
        stages = self._trainable_stages(self.network())
        return AveragedCropNetwork(size, stages, self.levels["layer4"].channels)


class ResNet(StagedBackbone):
    """The stages of a ResNet, with the feature maps C2 … C5 at strides 4, 8, 16 and 32."""

    def __init__(self, options: ResNetOptions | None = None) -> None:
        options = options or ResNetOptions()
        super().__init__(options._trainable_stages(options.network()), options.levels, options.mean, options.std)


def _stride_in_1x1(network: Network, depth: int) -> None:
    """Move, in place, the stride of every bottleneck from its second convolution to the first."""
    if depth < 50:
        raise UserError(f"backbone.stride_in_1x1: ResNet-{depth} has no bottlenecks; leave it out")
    for stage in (network.layer2, network.layer3, network.layer4):
        block = stage[0]
        block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride


def _dilate(stage: nn.Module) -> None:
    """Remove, in place, the stride of a stage and dilate all its 3×3 convolutions by 2, as in detectron2.

    torchvision's `replace_stride_with_dilation` leaves out the first convolution.
    """
    for layer in stage.modules():
        if isinstance(layer, nn.Conv2d):
            layer.stride = (1, 1)
            if layer.kernel_size == (3, 3):
                layer.dilation = layer.padding = (2, 2)
