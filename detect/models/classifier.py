"""Image classification, with which the backbones of detectors begin (Girshick et al. 2014, §2.3)."""

from __future__ import annotations

from typing import Literal, Self

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from detect.backbones import CNN
from detect.backbones.norm import replace_norms
from detect.errors import UserError
from detect.structures import ClassificationBatch

Learning = Literal["all", "stages", "head"]
"""What of a network learns: all of it, the last of its stages, or what tells the classes apart."""


class Classifier(nn.Module):
    """A network of the backbones' list, whole, from the pixels to the classes.

    Its checkpoint, named in `backbone.weights`, is where a detector or another classifier can begin.

    Args:
        num_classes: C.
        backbone: `LeNet`, `AlexNet`, `VGG`, `VGGM`, `GoogLeNet` or `ResNet`.
        learns: `all`; `stages`, as many as `backbone.train_stages` says, and what comes after them; or `head`, the
            layers that tell the classes apart, behind features that stay as loaded.
        dropout: the share that each dropout layer of the network drops; null leaves the network's own.
        label_smoothing: the share of the truth that is spread over all classes (Szegedy et al. 2016, §7).
        loss_weights: of the loss, and of those of GoogLeNet's two auxiliary classifiers (Szegedy et al. 2015, §5).
    """

    mean: Float[Tensor, " 3"]
    std: Float[Tensor, " 3"]

    def __init__(
        self,
        num_classes: int,
        backbone: CNN,
        learns: Learning = "all",
        dropout: float | None = None,
        label_smoothing: float = 0.0,
        loss_weights: tuple[float, float, float] = (1.0, 0.3, 0.3),
    ) -> None:
        super().__init__()
        self.num_classes, self.label_smoothing, self.loss_weights = num_classes, label_smoothing, loss_weights
        self.network = backbone.network(num_classes)
        for layer in self.network.modules():
            if isinstance(layer, nn.Dropout) and dropout is not None:
                layer.p = dropout
        if learns == "stages":
            bottom = _bottom(backbone, self.network)
            _freeze(self.network, {layer for stage in bottom for layer in stage.modules()})
        elif learns == "head":
            layers = self.network.named_modules()
            _freeze(self.network, {layer for name, layer in layers if not f"{name}.".startswith(backbone.head)})
        self.register_buffer("mean", torch.tensor(backbone.mean))
        self.register_buffer("std", torch.tensor(backbone.std))
        self.memory_format = torch.channels_last

    def lay_out(self, memory_format: torch.memory_format) -> Self:
        """Brings weights, and from now on pixels, into this order; it changes times alone."""
        self.memory_format = memory_format
        return self.to(memory_format=memory_format)

    def forward(self, images: UInt8[Tensor, "B 3 H W"]) -> Float[Tensor, "B C"]:
        """The logits of each image."""
        return self._outputs(images)[0].float()

    def loss(self, batch: ClassificationBatch) -> dict[str, Float[Tensor, ""]]:
        """Cross entropy, in training also of the auxiliary classifiers, each by name and to be summed."""
        names = ("classification", "auxiliary2", "auxiliary1")  # GoogLeNet gives the deeper one first
        weights = (self.loss_weights[0], self.loss_weights[2], self.loss_weights[1])
        return {
            name: weight * F.cross_entropy(logits.float(), batch.labels, label_smoothing=self.label_smoothing)
            for name, weight, logits in zip(names, weights, self._outputs(batch.images), strict=False)
        }

    def _outputs(self, images: Tensor) -> tuple[Tensor, ...]:
        """The logits, and those of auxiliary classifiers while these learn."""
        pixels = (images.to(self.mean.dtype) - self.mean[:, None, None]) / self.std[:, None, None]
        outputs = self.network(pixels.to(memory_format=self.memory_format))
        return tuple(outputs) if isinstance(outputs, tuple) else (outputs,)


def _bottom(backbone: CNN, network: nn.Module) -> list[nn.Sequential]:
    """The stages that stay as loaded."""
    stages, learning = list(backbone.stages(network).values()), backbone.train_stages
    if learning > len(stages):
        raise UserError(
            f"model.backbone.train_stages: {learning}: the network has {len(stages)} stages; give 0 … {len(stages)}"
        )
    return stages[: len(stages) - learning]


def _freeze(network: nn.Module, frozen: set[nn.Module]) -> None:
    """Make layers of a network constants, in place: no gradients, and statistics that training does not change."""
    for layer in frozen:
        for parameter in layer.parameters(recurse=False):
            parameter.requires_grad_(False)
    replace_norms(network, "frozen", frozen)
