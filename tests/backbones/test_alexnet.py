import pytest
import torch
from torch import nn
from torchvision.models import get_model

from detect.backbones import AlexNetOptions, FeatureInfo
from detect.backbones.backbone import centre_cells


@pytest.fixture
def quick(monkeypatch):
    """Leave linear layers uninitialised: random numbers for millions of weights take seconds."""
    monkeypatch.setattr(nn.Linear, "reset_parameters", lambda layer: None)


def test_channels_and_strides_are_true():
    with torch.device("meta"):
        backbone, box_head = AlexNetOptions().build(multi_scale=False)
        for images in (0, 1, 2):
            (features,) = backbone(torch.empty(images, 3, 64, 96)).values()
            assert features.shape == (images, 256, 4, 6)
        for regions in (0, 1, 5):
            assert box_head(torch.empty(regions, 256, 6, 6)).shape == (regions, 4096)
    assert backbone.levels == {"conv5": FeatureInfo(channels=256, stride=16)}
    assert (box_head.channels_in, box_head.pooled, box_head.channels) == (256, 6, 4096)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (32, 64), (608, 1024), (992, 800)])
def test_every_canvas_has_as_many_cells_as_promised(height, width):
    with torch.device("meta"):
        (features,) = AlexNetOptions().build(multi_scale=False)[0](torch.empty(1, 3, height, width)).values()
    assert features.shape[-2:] == (height // 16, width // 16)


def test_cells_are_centred_on_the_multiples_of_16(quick):
    """Of an image 16 n + 1 pixels wide that maps such centres, and only such, onto one another by reflection."""
    backbone, _ = AlexNetOptions().build(multi_scale=False)
    with torch.no_grad():
        for layer in backbone.modules():
            if isinstance(layer, nn.Conv2d):
                layer.weight.add_(layer.weight.flip(-1)).add_(layer.weight.flip(-2))
        pixels = torch.randn(1, 3, 65, 97)
        (features,) = backbone(pixels).values()
        assert features.shape[-2:] == (5, 7)
        assert features.std() > 0.01
        torch.testing.assert_close(backbone(pixels.flip(-1))["conv5"], features.flip(-1), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(backbone(pixels.flip(-2))["conv5"], features.flip(-2), rtol=1e-4, atol=1e-4)


def test_features_off_the_border_are_torchvisions(quick):
    """torchvision's cells are centred on 15, 31, 47 …: on 16, 32, 48 … once a row and a column of pixels are gone."""
    backbone, network = AlexNetOptions().build(multi_scale=False)[0], get_model("alexnet")
    pixels = torch.randn(1, 3, 224, 256)
    with torch.no_grad():
        for mine, other in zip(backbone.parameters(), network.features.parameters(), strict=True):
            mine.copy_(other)
        (ours,) = backbone(pixels).values()
        theirs = network.features[:12](pixels[..., 1:, 1:])
    # A cell sees 163 pixels, 81 to each side of its centre: the others see padding.
    assert (ours.shape[-2:], theirs.shape[-2:]) == ((14, 16), (13, 15))
    torch.testing.assert_close(ours[..., 6:9, 6:11], theirs[..., 5:8, 5:10], rtol=1e-4, atol=1e-5)
    assert ours[..., 6:9, 6:11].std() > 0.01


def test_the_crop_network_is_torchvisions_network_up_to_its_classifier(quick, tmp_path):
    network = get_model("alexnet").eval()
    state = {key: value for key, value in network.state_dict().items() if not key.startswith("classifier.6.")}
    for layer in (1, 4):
        # Each row is the one above, shifted: as good as random, and quick to draw and to save.
        rows, columns = state[f"classifier.{layer}.weight"].shape
        diagonals = torch.randn(rows + columns - 1) * columns**-0.5
        state[f"classifier.{layer}.weight"] = diagonals.unfold(0, columns, 1)
        state[f"classifier.{layer}.bias"] = torch.randn(rows)
    network.load_state_dict(state, strict=False)
    torch.save(state, tmp_path / "alexnet.pth")

    crop_network = AlexNetOptions(weights=str(tmp_path / "alexnet.pth")).build_crop_network(224).eval()
    for size in (224, 100):  # the second leaves pool5 2×2 cells
        crops = torch.randn(1, 3, size, size)
        with torch.no_grad():
            pool5 = network.avgpool(network.features(crops)).flatten(1)
            expected = {"pool5": pool5, "fc6": network.classifier[:3](pool5), "fc7": network.classifier[:6](pool5)}
            torch.testing.assert_close(crop_network.forward_layers(crops), expected, rtol=1e-6, atol=1e-6)
        assert all(layer.std() > 0.01 for layer in expected.values())


def test_dropout_comes_before_each_layer():
    with torch.device("meta"):
        assert AlexNetOptions().build(multi_scale=False)[1].dropout_first


def test_the_default_freezes_what_fast_rcnn_freezes():
    with torch.device("meta"):
        backbone, _ = AlexNetOptions().build(multi_scale=False)
    frozen = {name for name, parameter in backbone.named_parameters() if not parameter.requires_grad}
    assert frozen == {"body.conv1.0.weight", "body.conv1.0.bias"}


def test_centred_cells_by_hand():
    layers = nn.Sequential(nn.Conv2d(1, 1, (3, 5), stride=2), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True))
    centre_cells(layers)
    assert (layers[0].padding, layers[2].padding, layers[2].ceil_mode) == ((1, 2), (1, 1), False)
    assert layers(torch.zeros(1, 1, 32, 64)).shape == (1, 1, 8, 16)


def test_even_kernels_keep_the_count_of_cells_by_hand():
    layers = nn.Sequential(nn.MaxPool2d(2, 2, ceil_mode=True), nn.MaxPool2d(4, 2))
    centre_cells(layers)
    assert (layers[0].padding, layers[1].padding, layers[0].ceil_mode) == ((0, 0), (1, 1), False)
    assert layers(torch.zeros(1, 1, 32, 64)).shape == (1, 1, 8, 16)
