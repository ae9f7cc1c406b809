"""Crop networks of all backbones; that each computes the right features is tested in the file of its backbone."""

import pytest
import torch
from torch import nn

from detect.backbones import AlexNetOptions, GoogLeNetOptions, LeNetOptions, ResNetOptions, VGGMOptions, VGGOptions
from detect.errors import UserError

FC = {"fc6": 4096, "fc7": 4096}
NETWORKS = [
    (AlexNetOptions, 63, {"pool5": 9216, **FC}),
    (VGGMOptions, 41, {"pool5": 18432, "fc6": 4096, "fc7": 1024}),
    (VGGOptions, 32, {"pool5": 25088, **FC}),
    (LeNetOptions, 16, {"pool5": 400, "fc6": 120, "fc7": 84}),
    (GoogLeNetOptions, 15, {"pool5": 1024}),
    (lambda **options: VGGOptions(11, norm="frozen", **options), 32, {"pool5": 25088, **FC}),
    (lambda **options: ResNetOptions(18, norm="group", **options), 1, {"pool5": 512}),
    (lambda **options: ResNetOptions(50, **options), 1, {"pool5": 2048}),
]


@pytest.fixture
def quick(monkeypatch):
    """Leave linear layers uninitialised: random numbers for millions of weights take seconds."""
    monkeypatch.setattr(nn.Linear, "reset_parameters", lambda layer: None)


@pytest.mark.parametrize(("network", "least", "layers"), NETWORKS)
def test_layers_and_widths_are_true_from_the_least_size_on(network, least, layers):
    for size in (least, 227):
        with torch.device("meta"):
            crop_network = network().build_crop_network(size)
            assert crop_network.layers == layers
            assert list(crop_network.layers) == list(layers)
            assert (crop_network.channels_in, crop_network.pooled) == (3, size)
            assert crop_network.channels == list(layers.values())[-1]
            for crops in (0, 1, 2):
                described = crop_network.forward_layers(torch.empty(crops, 3, size, size))
                widths = {name: vectors.shape for name, vectors in described.items()}
                assert widths == {name: (crops, width) for name, width in layers.items()}
                assert list(described) == list(layers)


@pytest.mark.parametrize(("network", "least", "layers"), NETWORKS)
def test_crops_that_are_too_small_are_refused(network, least, layers):
    with pytest.raises(UserError, match=f"^size: {least - 1}: .* at least {least} pixels a side$"):
        network().build_crop_network(least - 1)


@pytest.mark.parametrize(("network", "least", "layers"), NETWORKS[:5])
def test_a_pixel_less_would_leave_no_cell(network, least, layers):
    with torch.device("meta"):
        crop_network = network().build_crop_network(least)
        with pytest.raises(RuntimeError, match="too small"):
            crop_network(torch.empty(1, 3, least - 1, least - 1))


@pytest.mark.parametrize(
    "network", [AlexNetOptions, VGGMOptions, LeNetOptions, GoogLeNetOptions, lambda: ResNetOptions(18)]
)
def test_no_crops_give_no_vectors(network, quick):
    crop_network = network().build_crop_network(64)
    for mode in (True, False):
        layers = crop_network.train(mode).forward_layers(torch.empty(0, 3, 64, 64))
        assert {name: vectors.shape for name, vectors in layers.items()} == {
            name: (0, width) for name, width in crop_network.layers.items()
        }


@pytest.mark.parametrize(("network", "least", "layers"), NETWORKS)
@pytest.mark.parametrize("train_stages", [0, 2, 5])
def test_the_last_stages_learn_and_so_does_what_follows(network, least, layers, train_stages):
    stages = 2 if network is LeNetOptions else 5
    train_stages = min(train_stages, stages)
    with torch.device("meta"):
        crop_network = network(train_stages=train_stages).build_crop_network(64)
        if any(parameter.requires_grad for parameter in crop_network.parameters()):
            crop_network(torch.empty(2, 3, 64, 64)).sum().backward()
    assert len(crop_network.body) == stages
    for place, stage in enumerate(crop_network.body):
        trainable = place >= stages - train_stages
        assert all((parameter.grad is not None) == trainable for parameter in stage.parameters())
    rest = [parameter for name, parameter in crop_network.named_parameters() if not name.startswith("body.")]
    assert len(rest) == (4 if "fc7" in layers else 0)
    assert all(parameter.grad is not None for parameter in rest)


def test_more_stages_than_there_are_cannot_learn():
    options = LeNetOptions(train_stages=3)
    builds = (lambda: options.build(False), lambda: options.build(True), lambda: options.build_crop_network(32))
    for build in builds:
        with pytest.raises(UserError, match=r"^train_stages: 3: the network has 2 stages; give 0 … 2$"):
            build()


@pytest.mark.parametrize("network", [VGGOptions, VGGMOptions, AlexNetOptions, LeNetOptions])
def test_stages_and_weights_are_those_of_the_network_cut_in_two(network):
    with torch.device("meta"):
        backbone, box_head = network().build(multi_scale=False)
        crop_network = network().build_crop_network(224)
    body = {f"body.{name}": p.shape for name, p in backbone.body.named_parameters() if p.requires_grad}
    top = {f"fully_connected.{name}": p.shape for name, p in box_head.named_parameters()}
    assert {name: p.shape for name, p in crop_network.named_parameters() if p.requires_grad} == body | top
