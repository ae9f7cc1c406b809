import pytest
import torch
from torch import nn

from detect.backbones import AlexNetOptions, LeNetOptions, ResNetOptions, VGGMOptions, VGGOptions
from detect.backbones.fully_connected import FullyConnectedBoxHead, FullyConnectedCropNetwork, dense_network
from detect.errors import UserError


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


# ---- dense evaluation ------------------------------------------------------------------------------------------------


def crops_of(image: torch.Tensor, side: int, stride: int) -> torch.Tensor:
    """Return all crops in the order of the cells of a map of this stride."""
    views = image.unfold(2, side, stride).unfold(3, side, stride)
    return views[0].movedim(0, 2).flatten(0, 1)


def test_dense_by_hand():
    """Of the 3 × 2 pixels 1 … 6, the sums of the 2 × 2 regions are 10 and 18: the scores 10 and 2, then 18 and -6."""
    fc6, fc7 = nn.Linear(4, 1), nn.Linear(1, 2)
    fc6.weight.data.fill_(1)
    fc6.bias.data.zero_()
    fc7.weight.data.copy_(torch.tensor([[1.0], [-1.0]]))
    fc7.bias.data.copy_(torch.tensor([0.0, 12.0]))
    network = nn.Module()
    network.features, network.classifier = nn.Identity(), nn.Sequential(fc6, nn.ReLU(), fc7)
    dense = dense_network(network, pooled=2)
    image = torch.arange(1.0, 7).view(1, 1, 3, 2)
    assert dense[:2](image).tolist() == [[[[10], [18]], [[2], [-6]]]]
    assert dense(image).tolist() == [[14, -2]]


@torch.no_grad()
def test_dense_lenet_has_the_logits_of_all_crops():
    """LeNet-5 has no padding: a cell of the map is a crop of 32 pixels, and the next one is 4 pixels further."""
    network = LeNetOptions().network(3)
    dense = LeNetOptions().dense(network, 32)
    image = torch.randn(1, 3, 40, 52)
    crops = network(crops_of(image, 32, 4))
    assert crops.shape == (3 * 6, 3) and crops.std(dim=0).min() > 1e-3
    torch.testing.assert_close(dense[:2](image)[0].flatten(1).T, crops, atol=1e-5, rtol=0)
    torch.testing.assert_close(dense(image)[0], crops.mean(dim=0), atol=1e-5, rtol=0)
    one = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(dense(one), network(one), atol=1e-5, rtol=0)
    assert dense(one[:0]).shape == (0, 3)


@torch.no_grad()
def test_dense_vgg_has_the_logits_of_all_crops():
    """One convolution without padding takes the place of VGG's, which would take a few seconds."""
    with torch.device("meta"):
        network = VGGOptions(11).network(4)
    network = network.to_empty(device="cpu").eval()
    for layer in network.classifier[::3]:
        # Rows of a few distinct numbers fill the large matrices sooner than random numbers would.
        layer.bias.fill_(0.5)
        columns = torch.randn(layer.in_features) / layer.in_features**0.5
        layer.weight.copy_(columns * torch.linspace(-1, 1, layer.out_features)[:, None])
    network.features = nn.Conv2d(3, 512, 32, stride=32)
    dense = VGGOptions(11).dense(network, 224)
    image = torch.randn(1, 3, 256, 288)
    crops = network(crops_of(image, 224, 32))
    assert crops.shape == (2 * 3, 4) and crops.std(dim=0).max() > 0.01
    torch.testing.assert_close(dense[:2](image)[0].flatten(1).T, crops, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(dense(image)[0], crops.mean(dim=0), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("options", [AlexNetOptions(), VGGMOptions(), VGGOptions("C"), VGGOptions("A-LRN")])
def test_dense_score_maps_have_the_stride_of_the_last_pool(options):
    with torch.device("meta"):
        network = options.network(7)
        dense = options.dense(network, 224)
        assert dense[:2](torch.empty(2, 3, 224 + 64, 224 + 128)).shape == (2, 7, 3, 5)
        assert dense[:2](torch.empty(1, 3, 224, 224)).shape == (1, 7, 1, 1)
    assert sum(one.numel() for one in dense.parameters()) == sum(one.numel() for one in network.parameters())
    assert dense.state_dict().keys() == network.state_dict().keys()


@torch.no_grad()
def test_dense_resnet_is_the_network():
    """The mean of the scores of all cells is the score of the mean of all cells."""
    network = ResNetOptions(18, norm="batch").network(3).eval()
    image = torch.randn(1, 3, 64, 96)
    body = nn.Sequential(*list(network.children())[:-2])
    score_map = torch.einsum("kc,bchw->bkhw", network.fc.weight, body(image)) + network.fc.bias[:, None, None]
    dense = ResNetOptions(18).dense(network, 32)
    torch.testing.assert_close(dense(image), score_map.mean(dim=(2, 3)), atol=1e-5, rtol=1e-5)


def test_no_dense_form_of_resized_features():
    with torch.device("meta"):
        network = VGGOptions(11).network(2)
        for size in (224, 255):
            VGGOptions(11).dense(network, size)
        for size, cells in ((223, 6), (64, 2), (256, 8)):
            message = rf"^data\.size: {size}: such crops have {cells}×{cells} cells, which are resized to the 7×7 of"
            with pytest.raises(UserError, match=message):
                VGGOptions(11).dense(network, size)
        with pytest.raises(UserError, match=r"^size: 16: the network needs crops of at least 32 pixels"):
            VGGOptions(11).dense(network, 16)
