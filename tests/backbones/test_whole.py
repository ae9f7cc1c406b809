"""What holds of every network that is put on crops; that each computes the right thing, its own file tests."""

import pytest
import torch
from torch import nn

from detect.backbones import VGG, VGGM, AlexNet, GoogLeNet, LeNet, ResNet
from detect.errors import UserError

FC = {"fc6": 4096, "fc7": 4096}
NETWORKS = [
    (AlexNet, 63, {"pool5": 9216, **FC}),
    (VGGM, 41, {"pool5": 18432, "fc6": 4096, "fc7": 1024}),
    (VGG, 32, {"pool5": 25088, **FC}),
    (LeNet, 16, {"pool5": 400, "fc6": 120, "fc7": 84}),
    (GoogLeNet, 15, {"pool5": 1024}),
    (lambda **options: VGG(11, norm="frozen", **options), 32, {"pool5": 25088, **FC}),
    (lambda **options: ResNet(18, norm="group", **options), 1, {"pool5": 512}),
    (lambda **options: ResNet(50, fpn=False, **options), 1, {"pool5": 2048}),
]


@pytest.fixture
def quick(monkeypatch):
    """Linear layers keep whatever the memory holds: random numbers for millions of weights take seconds."""
    monkeypatch.setattr(nn.Linear, "reset_parameters", lambda layer: None)


@pytest.mark.parametrize(("network", "least", "layers"), NETWORKS)
def test_layers_and_widths_are_true_from_the_least_size_on(network, least, layers):
    for size in (least, 227):
        with torch.device("meta"):
            trunk = network().build_whole(size)
            assert trunk.layers == layers
            assert list(trunk.layers) == list(layers)
            assert (trunk.channels_in, trunk.pooled, trunk.channels) == (3, size, list(layers.values())[-1])
            for crops in (0, 1, 2):
                described = trunk.forward_layers(torch.empty(crops, 3, size, size))
                widths = {name: vectors.shape for name, vectors in described.items()}
                assert widths == {name: (crops, width) for name, width in layers.items()}
                assert list(described) == list(layers)


@pytest.mark.parametrize(("network", "least", "layers"), NETWORKS)
def test_crops_that_are_too_small_are_refused(network, least, layers):
    with pytest.raises(UserError, match=f"^size: {least - 1}: .* at least {least} pixels a side$"):
        network().build_whole(least - 1)


@pytest.mark.parametrize(("network", "least", "layers"), NETWORKS[:5])
def test_a_pixel_less_would_leave_no_cell(network, least, layers):
    with torch.device("meta"):
        trunk = network().build_whole(least)
        with pytest.raises(RuntimeError, match="too small"):
            trunk(torch.empty(1, 3, least - 1, least - 1))


@pytest.mark.parametrize("network", [AlexNet, VGGM, LeNet, GoogLeNet, lambda: ResNet(18)])
def test_no_crops_give_no_vectors(network, quick):
    trunk = network().build_whole(64)
    for mode in (True, False):
        layers = trunk.train(mode).forward_layers(torch.empty(0, 3, 64, 64))
        assert {name: vectors.shape for name, vectors in layers.items()} == {
            name: (0, width) for name, width in trunk.layers.items()
        }


@pytest.mark.parametrize(("network", "least", "layers"), NETWORKS)
@pytest.mark.parametrize("train_stages", [0, 2, 5])
def test_the_last_stages_learn_and_so_does_what_follows(network, least, layers, train_stages):
    stages = 2 if network is LeNet else 5
    train_stages = min(train_stages, stages)
    with torch.device("meta"):
        trunk = network(train_stages=train_stages).build_whole(64)
        if any(parameter.requires_grad for parameter in trunk.parameters()):
            trunk(torch.empty(2, 3, 64, 64)).sum().backward()
    assert len(trunk.body) == stages
    for place, stage in enumerate(trunk.body):
        learns = place >= stages - train_stages
        assert all((parameter.grad is not None) == learns for parameter in stage.parameters())
    rest = [parameter for name, parameter in trunk.named_parameters() if not name.startswith("body.")]
    assert len(rest) == (4 if "fc7" in layers else 0)
    assert all(parameter.grad is not None for parameter in rest)


def test_more_stages_than_there_are_cannot_learn():
    for build in (LeNet(train_stages=3).build, lambda: LeNet(train_stages=3).build_whole(32)):
        with pytest.raises(UserError, match=r"^train_stages: 3: the network has 2 stages; give 0 … 2$"):
            build()


@pytest.mark.parametrize("network", [VGG, VGGM, AlexNet, LeNet])
def test_stages_and_weights_are_those_of_the_network_cut_in_two(network):
    with torch.device("meta"):
        backbone, trunk = network().build()
        whole = network().build_whole(224)
    body = {f"body.{name}": p.shape for name, p in backbone.body.named_parameters() if p.requires_grad}
    top = {f"fully_connected.{name}": p.shape for name, p in trunk.named_parameters()}
    assert {name: p.shape for name, p in whole.named_parameters() if p.requires_grad} == body | top
