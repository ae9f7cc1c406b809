"""GoogLeNet (Szegedy et al. 2015, "Going Deeper with Convolutions"), cut before its last two inception modules."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import field
from typing import Literal

from torch import nn
from torchvision.models import get_model

from detect.backbones.backbone import (
    AveragedCropNetwork,
    BackboneOptions,
    FeatureInfo,
    Network,
    StageBoxHead,
    StagedBackbone,
    Stages,
    TrainStages,
    centre_cells,
    refuse_small_crops,
)
from detect.backbones.norm import Norm, replace_norms
from detect.options import options

# A stage begins with the max-pool that halves its input, where there is one.
STAGES = {
    "conv1": ("conv1",),
    "conv2": ("maxpool1", "conv2", "conv3"),
    "inception3": ("maxpool2", "inception3a", "inception3b"),
    "inception4": ("maxpool3", "inception4a", "inception4b", "inception4c", "inception4d", "inception4e"),
    "inception5": ("maxpool4", "inception5a", "inception5b"),
}


LEVELS = {
    "conv1": FeatureInfo(64, 2),
    "conv2": FeatureInfo(192, 4),
    "inception3": FeatureInfo(480, 8),
    "inception4": FeatureInfo(832, 16),
    "inception5": FeatureInfo(1024, 32),
}


@options
class GoogLeNetOptions(BackboneOptions):
    """GoogLeNet in torchvision's form: with batch norm, and 3×3 where the paper has 5×5.

    Stride 16 and 832 channels; the last two inception modules are a box head for regions of 14×14.
    """

    # The published weights were trained on pixels in -1 … 1.
    mean = (127.5, 127.5, 127.5)
    std = (127.5, 127.5, 127.5)
    # The auxiliary classifiers are for training from scratch only.
    classifier_keys = ("fc.", "aux1.", "aux2.")

    name: Literal["googlenet"] = field(default="googlenet", kw_only=True)
    norm: Norm = "frozen"
    """The paper has none, torchvision's form has batch norm. Frozen statistics make sense only with weights or in a
    checkpoint; from scratch, use `batch` or `group`."""
    train_stages: TrainStages = 3
    """Number of stages of conv1, conv2, inception3, inception4 and inception5 that are trained, counted from the last;
    the others stay as loaded."""

    def architecture(self) -> str:
        """Return googlenet."""
        return "googlenet"

    def make(self, num_classes: int) -> Network:
        """Return torchvision's network with its auxiliary classifiers and the chosen norm."""
        init = self.weights is None and self.initialization is None
        network = get_model("googlenet", init_weights=init, num_classes=num_classes)
        replace_norms(network, self.norm)
        return network

    def stages(self, network: Network) -> Stages:
        """Return conv1, conv2, inception3, inception4 and inception5."""
        return OrderedDict(
            (stage, nn.Sequential(OrderedDict((name, getattr(network, name)) for name in names)))
            for stage, names in STAGES.items()
        )

    def build(self, multi_scale: bool) -> tuple[StagedBackbone, StageBoxHead | None]:
        """Return all levels, or inception4 with inception5 as box head; the cells are centred (see `centre_cells`)."""
        stages = self._trainable_stages(self.network())
        centre_cells(nn.Sequential(*(stages.values() if multi_scale else list(stages.values())[:-1])))
        backbone = StagedBackbone(stages, LEVELS, self.mean, self.std)
        if multi_scale:
            return backbone, None
        box_head = StageBoxHead(backbone.pop_stage(), LEVELS["inception4"].channels, LEVELS["inception5"].channels)
        backbone.keep_last_level()
        return backbone, box_head

    def build_crop_network(self, size: int) -> AveragedCropNetwork:
        """Return the network with its average pool."""
        refuse_small_crops(size, 15)
        stages = self._trainable_stages(self.network())
        return AveragedCropNetwork(size, stages, LEVELS["inception5"].channels)
