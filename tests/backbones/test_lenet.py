import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from detect.backbones import FeatureInfo, LeNetOptions
from detect.backbones.lenet import Grey
from detect.errors import UserError


@torch.no_grad()
def averaging(**options) -> nn.Module:
    """Return a network whose layers all compute the mean of their input."""
    network = LeNetOptions(**options).network(2)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.weight.fill_(1 / layer.weight[0].numel())
            layer.bias.zero_()
    return network


def test_parameters_of_each_layer_are_the_papers():
    with torch.device("meta"):
        network = LeNetOptions().network(10)
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    assert [sum(one.numel() for one in layer.parameters()) for layer in layers] == [156, 2416, 48120, 10164, 850]


def test_channels_and_strides_are_true():
    with torch.device("meta"):
        backbone, box_head = LeNetOptions().build(multi_scale=False)
        for images in (0, 1, 2):
            (features,) = backbone(torch.empty(images, 3, 64, 96)).values()
            assert features.shape == (images, 16, 32, 48)
        for regions in (0, 1, 5):
            assert box_head(torch.empty(regions, 16, 5, 5)).shape == (regions, 84)
    assert backbone.levels == {"conv2": FeatureInfo(channels=16, stride=2)}
    assert (box_head.channels_in, box_head.pooled, box_head.channels) == (16, 5, 84)


def test_pixels_become_minus_one_to_one():
    backbone = LeNetOptions().build(multi_scale=False)[0]
    assert ((torch.tensor([0.0, 255.0]) - backbone.mean[0]) / backbone.std[0]).tolist() == [-1, 1]


def test_grey_by_hand():
    pixels = torch.tensor([10.0, 20.0, 30.0]).view(1, 3, 1, 1)
    torch.testing.assert_close(Grey()(pixels), torch.full((1, 1, 1, 1), 2.99 + 11.74 + 3.42))
    equal = torch.rand(2, 1, 4, 5).expand(2, 3, 4, 5)
    torch.testing.assert_close(Grey()(equal), equal[:, :1])
    assert Grey()(torch.empty(0, 3, 4, 5)).shape == (0, 1, 4, 5)


ACTIVATIONS = {"tanh": math.tanh, "sigmoid": lambda x: 1 / (1 + math.exp(-x))}


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_red_image_by_hand(activation):
    """Four layers with an activation, each of the mean of its inputs; the last layer has none."""
    red = torch.tensor([1.0, -1.0, -1.0]).view(1, 3, 1, 1).expand(1, 3, 32, 32)
    value = 0.299 - 0.587 - 0.114
    for _ in range(4):
        value = ACTIVATIONS[activation](value)
    torch.testing.assert_close(averaging(activation=activation)(red), torch.full((1, 2), value))


def test_each_layer_is_where_the_paper_has_it():
    network = LeNetOptions().network(3)
    convolutions = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    linears = [layer for layer in network.modules() if isinstance(layer, nn.Linear)]
    pixels = torch.randn(2, 3, 32, 32)
    x = 0.299 * pixels[:, :1] + 0.587 * pixels[:, 1:2] + 0.114 * pixels[:, 2:]
    for layer in convolutions:
        x = F.avg_pool2d(F.conv2d(x, layer.weight, layer.bias).tanh(), 2)
    assert x.shape == (2, 16, 5, 5)
    x = x.flatten(1)
    vectors = []
    for layer in linears:
        x = F.linear(x, layer.weight, layer.bias)
        vectors.append(x.tanh())
        x = x if layer is linears[-1] else vectors[-1]
    torch.testing.assert_close(network(pixels), x)
    assert x.std() > 0.01


def test_crops_of_another_size_are_averaged_to_five_cells():
    network = LeNetOptions().network(3)
    for size, pool in ((52, 2), (32, 1)):  # the last pool leaves 10 and 5 cells a side
        pixels = torch.randn(2, 3, size, size)
        cells = F.avg_pool2d(network.features(pixels), pool)
        assert cells.shape[-2:] == (5, 5)
        torch.testing.assert_close(network(pixels), network.classifier(cells.flatten(1)))
    assert network(torch.randn(2, 3, 16, 16)).isfinite().all()


def test_features_off_the_border_are_the_networks(monkeypatch):
    """Padded by two, conv1 begins two pixels earlier; three of the pool's cells come before the network's first."""
    network = LeNetOptions().network(3)
    monkeypatch.setattr(LeNetOptions, "make", lambda self, num_classes: network)
    pixels = torch.randn(1, 3, 64, 96)
    theirs = network.features[:6](pixels)
    (ours,) = LeNetOptions().build(multi_scale=False)[0](pixels).values()
    assert (ours.shape[-2:], theirs.shape[-2:]) == ((32, 48), (26, 42))
    torch.testing.assert_close(ours[..., 3:29, 3:45], theirs)
    assert theirs.std() > 0.01


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_crop_network_is_the_network_up_to_its_classifier(monkeypatch, activation):
    options = LeNetOptions(activation=activation)
    network = options.network(3)
    monkeypatch.setattr(LeNetOptions, "make", lambda self, num_classes: network)
    crops = torch.randn(2, 3, 40, 40)
    pool5 = network.avgpool(network.features(crops)).flatten(1)
    fc6, fc7 = (network.classifier[:end](pool5) for end in (2, 4))
    crop_network = options.build_crop_network(40).train()  # nothing is dropped
    torch.testing.assert_close(crop_network.forward_layers(crops), {"pool5": pool5, "fc6": fc6, "fc7": fc7})


def test_names_of_published_weights_are_refused():
    with pytest.raises(UserError, match=r"weights: DEFAULT: torchvision has none for lenet; give a \.pth"):
        LeNetOptions(weights="DEFAULT").network(10)
    with pytest.raises(UserError, match="torchvision has none for lenet_sigmoid; give"):
        LeNetOptions(weights="DEFAULT", activation="sigmoid").network(10)
