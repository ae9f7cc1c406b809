from math import sqrt

import pytest
import torch
from torch import nn
from torchvision.models import get_model

from detect.backbones import AlexNetOptions, LeNetOptions, alexnet
from detect.backbones.initialization import initialize


def initialized(rule) -> nn.Sequential:
    """A convolution of fan in 72 and fan out 576, a linear layer of 256 and 512, and a norm."""
    network = nn.Sequential(nn.Conv2d(8, 64, 3), nn.Linear(256, 512), nn.Linear(3, 3, bias=False), nn.BatchNorm2d(4))
    for parameter in network.parameters():
        nn.init.constant_(parameter, 7.0)
    initialize(network, rule)
    return network


@pytest.mark.parametrize(
    ("rule", "deviations"),
    [
        ("xavier", (sqrt(2 / (72 + 576)), sqrt(2 / (256 + 512)))),
        ("he", (sqrt(2 / 72), sqrt(2 / 256))),
        ("gaussian", (0.01, 0.01)),
    ],
)
def test_deviations_follow_from_the_fans(rule, deviations):
    for layer, deviation in zip(initialized(rule)[:2], deviations, strict=True):
        assert layer.weight.std().item() == pytest.approx(deviation, rel=0.05)
        assert abs(layer.weight.mean().item()) < 0.05 * deviation


def test_xavier_is_uniform_and_the_others_are_normal():
    """A uniform number is never beyond √3 deviations; one of a thousand normal ones is beyond 3.3."""
    for rule, least, most in (("xavier", 1.7, sqrt(3)), ("he", 3.3, 6), ("gaussian", 3.3, 6)):
        weights = initialized(rule)[1].weight
        assert least < (weights.abs().max() / weights.std()).item() < most * 1.01


@pytest.mark.parametrize("rule", ["xavier", "he", "gaussian"])
def test_biases_are_zero_and_norms_stay(rule):
    convolution, linear, without, norm = initialized(rule)
    assert not convolution.bias.any() and not linear.bias.any()
    assert without.bias is None and (without.weight != 7).all()
    assert (norm.weight == 7).all() and (norm.bias == 7).all()


def test_a_network_is_drawn_by_the_rule_that_it_is_given():
    layer = LeNetOptions(initialization="he").network(10).classifier[0]
    assert layer.weight.std().item() == pytest.approx(sqrt(2 / 400), rel=0.05) and not layer.bias.any()
    layer = LeNetOptions().network(10).classifier[0]
    assert layer.weight.abs().max().item() <= 1 / sqrt(400) and layer.bias.any()  # as torch draws


@pytest.fixture
def slim(monkeypatch) -> None:
    """AlexNet with fully connected layers of four numbers."""

    def make(name, num_classes):
        with torch.device("meta"):
            network = get_model(name, num_classes=num_classes)
        network.classifier[1] = nn.Linear(9216, 4, device="meta")
        network.classifier[4] = nn.Linear(4, 4, device="meta")
        network.classifier[6] = nn.Linear(4, num_classes, device="meta")
        network.to_empty(device="cpu")
        for parameter in network.parameters():
            nn.init.constant_(parameter, 3.0)
        return network

    monkeypatch.setattr(alexnet, "get_model", make)


def biases(network: nn.Module) -> dict[str, float]:
    """Of each layer, whose biases are all the same."""
    unique = {name: value.unique().tolist() for name, value in network.named_parameters() if name.endswith("bias")}
    assert all(len(values) == 1 for values in unique.values())
    return {name.removesuffix(".bias"): values[0] for name, values in unique.items()}


@pytest.mark.usefixtures("slim")
def test_alexnets_gaussians_come_with_its_ones():
    network = AlexNetOptions(initialization="gaussian").network(5)
    ones = {"features.3", "features.8", "features.10", "classifier.1", "classifier.4"}
    zeros = {"features.0", "features.6", "classifier.6"}
    assert biases(network) == dict.fromkeys(ones, 1.0) | dict.fromkeys(zeros, 0.0)
    assert network.features[3].weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert set(biases(AlexNetOptions(initialization="he").network(5)).values()) == {0.0}


@pytest.mark.usefixtures("slim")
def test_weights_win_over_the_initialisation(tmp_path):
    source = AlexNetOptions().network(5)
    torch.save(source.state_dict(), tmp_path / "alexnet.pth")
    network = AlexNetOptions(initialization="gaussian", weights=str(tmp_path / "alexnet.pth")).network(5)
    drawn = {name for name, value in network.named_parameters() if not (value == 3).all()}
    assert drawn == {"classifier.6.weight", "classifier.6.bias"}  # the layer that is not loaded
    assert network.classifier[6].weight.std().item() == pytest.approx(0.01, rel=0.5)
