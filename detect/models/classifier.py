"""Image classification, to pretrain the backbones of detectors (Girshick et al. 2014, §2.3)."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Literal, Self

import torch
from jaxtyping import Float, UInt8
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from detect.backbones import AnyBackbone, ResNetOptions
from detect.backbones.backbone import frozen_stages
from detect.backbones.norm import replace_norms
from detect.options import options
from detect.structures import ClassificationBatch

Trainable = Literal["all", "stages", "head"]


@options
class ClassifierOptions:
    """Options of a classifier.

    Args:
        backbone: the network.
        trainable: layers that are trained: `all`; `stages`, the last `backbone.train_stages` stages and all layers
            after them; or `head`, the classification layers on frozen features.
        dropout: probability of every dropout layer; null keeps the network's own.
        label_smoothing: fraction of the label that is spread over all classes (Szegedy et al. 2016, §7).
        loss_weights: weights of the loss and of the losses of GoogLeNet's two auxiliary classifiers (Szegedy et al.
            2015, §5); other networks use the first only.
    """

    name: Literal["classifier"] = "classifier"
    backbone: AnyBackbone = field(default_factory=ResNetOptions)
    trainable: Trainable = "all"
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    loss_weights: tuple[float, float, float] = (1.0, 0.3, 0.3)


class Classifier(nn.Module):
    """A whole network, from the pixels to the classes.

    Its checkpoint can initialise a detector or another classifier, given as `backbone.weights`.
    """

    mean: Float[Tensor, " 3"]
    std: Float[Tensor, " 3"]

    def __init__(self, num_classes: int, options: ClassifierOptions | None = None) -> None:
        super().__init__()
        options = options or ClassifierOptions()
        self.num_classes, self.options = num_classes, options
        backbone = options.backbone
        self.network = backbone.network(num_classes)
        for layer in self.network.modules():
            if isinstance(layer, nn.Dropout) and options.dropout is not None:
                layer.p = options.dropout
        if options.trainable == "stages":
            frozen = frozen_stages(backbone.stages(self.network), backbone.train_stages)
            _freeze(self.network, {layer for stage in frozen for layer in stage.modules()})
        elif options.trainable == "head":
            layers = self.network.named_modules()
            keys = backbone.classifier_keys
            _freeze(self.network, {layer for name, layer in layers if not f"{name}.".startswith(keys)})
        self.register_buffer("mean", torch.tensor(backbone.mean))
        self.register_buffer("std", torch.tensor(backbone.std))
        self.memory_format = torch.channels_last

    def to_memory_format(self, memory_format: torch.memory_format) -> Self:
        """Use a memory format for the weights and the pixels; results stay the same."""
        self.memory_format = memory_format
        return self.to(memory_format=memory_format)

    def to_dense(self, size: int) -> Self:
        """Make the classifier compute the mean of its class scores over whole images, in place, for evaluation.

        Args:
            size: pixels along each side of the crops on which it was trained.

        Raises:
            UserError: the network has no such form for crops of this size.
        """
        self.network = self.options.backbone.dense(self.network, size)
        return self

    def forward(self, images: UInt8[Tensor, "B 3 H W"]) -> Float[Tensor, "B C"]:
        """Compute the logits of each image."""
        return self._outputs(images)[0].float()

    def loss(self, batch: ClassificationBatch) -> dict[str, Float[Tensor, ""]]:
        """Compute the cross entropies by name, in training also of auxiliary classifiers; training sums them."""
        names = ("classification", "auxiliary2", "auxiliary1")  # GoogLeNet returns the deeper one first
        first, shallow, deep = self.options.loss_weights
        weights = (first, deep, shallow)
        return {
            name: weight * F.cross_entropy(logits.float(), batch.labels, label_smoothing=self.options.label_smoothing)
            for name, weight, logits in zip(names, weights, self._outputs(batch.images), strict=False)
        }

    def _outputs(self, images: Tensor) -> tuple[Tensor, ...]:
        """Compute the logits, in training also of auxiliary classifiers."""
        pixels = (images.to(self.mean.dtype) - self.mean[:, None, None]) / self.std[:, None, None]
        outputs = self.network(pixels.to(memory_format=self.memory_format))
        return tuple(outputs) if isinstance(outputs, tuple) else (outputs,)


def _freeze(network: nn.Module, frozen: set[nn.Module]) -> None:
    """Freeze layers of a network in place: no gradients, and constant batch norm statistics."""
    for layer in frozen:
        for parameter in layer.parameters(recurse=False):
            parameter.requires_grad_(False)
    replace_norms(network, "frozen", frozen)
