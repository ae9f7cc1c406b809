import pytest
import torch
from torch import nn

from detect.backbones.fully_connected import FullyConnectedBoxHead, FullyConnectedCropNetwork


def box_head(dropout_first=False) -> FullyConnectedBoxHead:
    """fc6 and fc7 return 1 … n for any input."""
    fc6, fc7 = nn.Linear(2 * 3 * 3, 100), nn.Linear(100, 200)
    for layer in (fc6, fc7):
        nn.init.zeros_(layer.weight)
        layer.bias.data.copy_(torch.arange(1.0, len(layer.bias) + 1))
    return FullyConnectedBoxHead(fc6, fc7, pooled=3, dropout_first=dropout_first)


def test_two_layers_by_hand():
    fc6, fc7 = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    fc6.weight.data.copy_(torch.tensor([[1.0, -1.0], [-1.0, 1.0]]))
    fc7.weight.data.copy_(torch.tensor([[2.0, 0.0], [-1.0, 0.0]]))
    layers = FullyConnectedBoxHead(fc6, fc7, pooled=1).eval()
    six, seven = layers.forward_layers(torch.tensor([5.0, 3.0]).view(1, 2, 1, 1))
    assert six.tolist() == [[2, 0]]
    assert seven.tolist() == [[4, 0]]
    assert layers(torch.tensor([5.0, 3.0]).view(1, 2, 1, 1)).tolist() == [[4, 0]]


@pytest.mark.parametrize("regions", [0, 1, 4])
@pytest.mark.parametrize("dropout_first", [False, True])
def test_shapes_follow_from_the_layers(regions, dropout_first):
    layers = box_head(dropout_first)
    assert (layers.channels_in, layers.pooled, layers.channels) == (2, 3, 200)
    six, seven = layers.forward_layers(torch.randn(regions, 2, 3, 3))
    assert (six.shape, seven.shape) == ((regions, 100), (regions, 200))


@pytest.mark.parametrize("width", [100, 200])
def test_dropout_after_a_layer_zeroes_half_of_it_and_doubles_the_rest(width):
    vectors = dict(zip((100, 200), box_head().train().forward_layers(torch.randn(1, 2, 3, 3)), strict=True))[width][0]
    kept = vectors > 0
    assert 0.35 * width < kept.sum() < 0.65 * width
    assert torch.equal(vectors[kept], 2 * torch.arange(1.0, width + 1)[kept])


def test_dropout_before_a_layer_leaves_what_it_gives():
    six, seven = box_head(dropout_first=True).train().forward_layers(torch.randn(1, 2, 3, 3))
    assert torch.equal(six[0], torch.arange(1.0, 101))
    assert torch.equal(seven[0], torch.arange(1.0, 201))


def test_dropout_before_a_layer_takes_half_of_its_input():
    layers = box_head(dropout_first=True).train()
    nn.init.eye_(layers.fc6.weight[:18])
    nn.init.zeros_(layers.fc6.bias)
    six, _ = layers.forward_layers(torch.ones(20, 2, 3, 3))
    assert set(six[:, :18].unique().tolist()) == {0, 2}
    assert 0.4 < (six[:, :18] == 0).float().mean() < 0.6


@pytest.mark.parametrize("dropout_first", [False, True])
def test_nothing_is_dropped_in_eval_mode(dropout_first):
    six, seven = box_head(dropout_first).eval().forward_layers(torch.randn(1, 2, 3, 3))
    assert torch.equal(six[0], torch.arange(1.0, 101))
    assert torch.equal(seven[0], torch.arange(1.0, 201))


def test_crops_of_another_size_are_averaged_to_what_fc6_takes():
    stages = {"conv1": nn.Sequential(nn.Conv2d(3, 2, 1))}
    for size in (6, 12):  # the pool leaves 3 and 6 cells a side
        crop_network = FullyConnectedCropNetwork(size, stages, nn.MaxPool2d(2), box_head()).eval()
        crops = torch.randn(2, 3, size, size)
        expected = nn.functional.max_pool2d(stages["conv1"](crops), 2)
        expected = nn.functional.avg_pool2d(expected, size // 6).flatten(1)
        torch.testing.assert_close(crop_network.forward_layers(crops)["pool5"], expected)
        assert crop_network.layers == {"pool5": 18, "fc6": 100, "fc7": 200}
        assert torch.equal(crop_network(crops), crop_network.forward_layers(crops)["fc7"])
