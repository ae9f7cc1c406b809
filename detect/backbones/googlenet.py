"""GoogLeNet (Szegedy et al. 2015, "Going Deeper with Convolutions"), cut before its last two inception modules."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import field
from typing import Literal

from torch import nn
from torchvision.models import get_model

from detect.backbones.backbone import (
    CNN,
    AveragingTrunk,
    Network,
    SingleScaleBackbone,
    TrainStages,
    WholeAveraging,
    centre_cells,
    freeze_bottom,
    refuse_small,
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


@options
class GoogLeNet(CNN):
    """GoogLeNet in torchvision's form: with batch norm, and 3×3 where the paper has 5×5.

    A backbone of stride 16 and 832 channels; the last two inception modules are a trunk that takes regions of 14×14.
    """

    # As of the code that its published weights were trained with: -1 … 1.
    mean = (127.5, 127.5, 127.5)
    std = (127.5, 127.5, 127.5)
    # The auxiliary classifiers serve training from scratch alone.
    head = ("fc.", "aux1.", "aux2.")

    name: Literal["googlenet"] = field(default="googlenet", kw_only=True)
    norm: Norm = "frozen"
    """The paper has none, torchvision's form has batch norm. Frozen statistics mean something only with weights, or in
    a checkpoint; from scratch, take `batch` or `group`."""
    train_stages: TrainStages = 3
    """How many of the stages conv1, conv2, inception3, inception4 and inception5 learn, counted from the last; the
    others stay as loaded."""

    def architecture(self) -> str:
        """googlenet."""
        return "googlenet"

    def make(self, num_classes: int) -> Network:
        """torchvision's network with its auxiliary classifiers, and the chosen norm."""
        init = self.weights is None and self.initialization is None
        network = get_model("googlenet", init_weights=init, num_classes=num_classes)
        replace_norms(network, self.norm)
        return network

    def stages(self, network: Network) -> OrderedDict[str, nn.Sequential]:
        """conv1, conv2, inception3, inception4 and inception5."""
        return OrderedDict(
            (stage, nn.Sequential(OrderedDict((name, getattr(network, name)) for name in names)))
            for stage, names in STAGES.items()
        )

    def build(self) -> tuple[SingleScaleBackbone, AveragingTrunk]:
        """The network cut in two after inception4; cells are moved to where region pooling expects them."""
        stages = self._frozen()
        inception5 = stages.popitem()[1]
        centre_cells(nn.Sequential(*stages.values()))
        backbone = SingleScaleBackbone(stages, channels=832, mean=self.mean, std=self.std)
        return backbone, AveragingTrunk(inception5, channels_in=832, channels=1024)

    def build_whole(self, size: int) -> WholeAveraging:
        """The network with its average pool."""
        refuse_small(size, 15)
        return WholeAveraging(size, self._frozen(), channels=1024)

    def _frozen(self) -> OrderedDict[str, nn.Sequential]:
        stages = self.stages(self.network())
        freeze_bottom(list(stages.values()), self.train_stages)
        return stages
