"""Initial weights of convolutions and linear layers."""

from __future__ import annotations

from typing import Literal

from torch import nn

Initialization = Literal["xavier", "he", "gaussian"]


def initialize(network: nn.Module, rule: Initialization) -> None:
    """Initialise all weights in place and set biases to zero; norms stay unchanged.

    `xavier`: uniform, variance 2 / (fan in + fan out) (Glorot and Bengio 2010, eq. 16). `he`: normal, variance
    2 / fan in, for layers before a ReLU (He et al. 2015, eq. 10). `gaussian`: normal, deviation 0.01, as in AlexNet's
    paper (§5) and VGG's (§3.1).
    """
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            if rule == "xavier":
                nn.init.xavier_uniform_(layer.weight)
            elif rule == "he":
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            else:
                nn.init.normal_(layer.weight, std=0.01)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
