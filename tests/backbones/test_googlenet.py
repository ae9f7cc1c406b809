import pytest
import torch
from torch import nn
from torchvision.models import get_model

from detect.backbones import FeatureInfo, GoogLeNetOptions
from detect.backbones.norm import FrozenBatchNorm2d
from detect.models import Classifier, ClassifierOptions


@torch.no_grad()
def livened(network: nn.Module) -> nn.Module:
    """Redraw weights and statistics: the features of an untrained network are nearly zero."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        elif isinstance(layer, nn.BatchNorm2d):
            for statistic in (layer.weight, layer.running_var):
                statistic.uniform_(0.8, 1.25)
            for statistic in (layer.bias, layer.running_mean):
                statistic.normal_(std=0.1)
    return network.eval()


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """torchvision's, of seven classes, with its auxiliary classifiers."""
    torch.manual_seed(0)
    return livened(get_model("googlenet", init_weights=False, num_classes=7)).requires_grad_(False)


@pytest.fixture(scope="module")
def weights(network, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("weights") / "googlenet.pth"
    torch.save(network.state_dict(), path)
    return str(path)


def up_to(network: nn.Module, last: str, x: torch.Tensor) -> torch.Tensor:
    """Apply the network's layers before `last` to x in order."""
    for name, layer in network.named_children():
        if name == last:
            break
        x = x if name.startswith("aux") else layer(x)
    return x


def test_channels_and_strides_are_true():
    with torch.device("meta"):
        backbone, box_head = GoogLeNetOptions().build(multi_scale=False)
        for images in (0, 1, 2):
            (features,) = backbone(torch.empty(images, 3, 64, 96)).values()
            assert features.shape == (images, 832, 4, 6)
        for regions in (0, 1, 5):
            assert box_head(torch.empty(regions, 832, 14, 14)).shape == (regions, 1024)
    assert backbone.levels == {"inception4": FeatureInfo(channels=832, stride=16)}
    assert (box_head.channels_in, box_head.pooled, box_head.channels) == (832, 14, 1024)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (32, 64), (608, 1024), (992, 800)])
def test_every_canvas_has_as_many_cells_as_promised(height, width):
    with torch.device("meta"):
        (features,) = GoogLeNetOptions().build(multi_scale=False)[0](torch.empty(1, 3, height, width)).values()
    assert features.shape[-2:] == (height // 16, width // 16)


@torch.no_grad()
def test_cells_are_centred_on_the_multiples_of_16(weights):
    """Of an image 16 n + 1 pixels wide that maps such centres, and only such, onto one another by reflection."""
    backbone, _ = GoogLeNetOptions(weights=weights).build(multi_scale=False)
    for layer in backbone.modules():
        if isinstance(layer, nn.Conv2d):
            layer.weight.add_(layer.weight.flip(-1)).add_(layer.weight.flip(-2)).div_(4)
    pixels = torch.randn(1, 3, 65, 97)
    (features,) = backbone(pixels).values()
    assert features.shape[-2:] == (5, 7)
    assert features.std() > 0.01
    torch.testing.assert_close(backbone(pixels.flip(-1))["inception4"], features.flip(-1), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(backbone(pixels.flip(-2))["inception4"], features.flip(-2), rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_features_off_the_border_are_torchvisions(network, weights):
    """torchvision's cells are centred on 14, 30, 46 …: on 16, 32, 48 … once two rows and columns of pixels are gone."""
    pixels = torch.randn(1, 3, 288, 288)
    (ours,) = GoogLeNetOptions(weights=weights).build(multi_scale=False)[0](pixels).values()
    theirs = up_to(network, "maxpool4", pixels[..., 2:, 2:])
    # A cell sees 235 pixels, 117 to each side of its centre: the others see padding.
    assert (ours.shape[1:], theirs.shape[1:]) == ((832, 18, 18), (832, 17, 17))
    torch.testing.assert_close(ours[..., 8:11, 8:11], theirs[..., 7:10, 7:10], rtol=1e-3, atol=1e-4)
    assert ours[..., 8:11, 8:11].std() > 0.01


@torch.no_grad()
def test_the_box_head_is_torchvisions_last_modules(network, weights):
    _, box_head = GoogLeNetOptions(weights=weights).build(multi_scale=False)
    box_head.train()  # nothing is dropped, and frozen norms stay so
    regions = torch.rand(2, 832, 14, 14)
    last = network.inception5b(network.inception5a(network.maxpool4(regions)))
    assert last.shape[-2:] == (7, 7)
    torch.testing.assert_close(box_head(regions), last.mean(dim=(2, 3)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (96, 160), (608, 1024)])
def test_all_levels_have_as_many_cells_as_promised(height, width):
    with torch.device("meta"):
        backbone, box_head = GoogLeNetOptions().build(multi_scale=True)
        maps = backbone(torch.empty(1, 3, height, width))
    assert box_head is None
    assert {name: tuple(features.shape[1:]) for name, features in maps.items()} == {
        "conv1": (64, height // 2, width // 2),
        "conv2": (192, height // 4, width // 4),
        "inception3": (480, height // 8, width // 8),
        "inception4": (832, height // 16, width // 16),
        "inception5": (1024, height // 32, width // 32),
    }
    assert backbone.levels == {
        name: FeatureInfo(features.shape[1], height // features.shape[2]) for name, features in maps.items()
    }


@torch.no_grad()
def test_the_last_levels_are_the_one_map_and_the_box_heads_stage_on_it(weights):
    pixels = torch.randn(1, 3, 96, 160)
    maps = GoogLeNetOptions(weights=weights).build(multi_scale=True)[0](pixels)
    backbone, box_head = GoogLeNetOptions(weights=weights).build(multi_scale=False)
    (features,) = backbone(pixels).values()
    torch.testing.assert_close(maps["inception4"], features)
    torch.testing.assert_close(maps["inception5"], box_head.stage(features))
    assert maps["inception5"].std() > 0.01


@pytest.mark.parametrize("size", [64, 75, 15])
@torch.no_grad()
def test_the_crop_network_is_torchvisions_network_up_to_its_classifier(network, weights, size):
    crops = torch.randn(2, 3, size, size)
    crop_network = GoogLeNetOptions(weights=weights).build_crop_network(size)
    expected = up_to(network, "avgpool", crops).mean(dim=(2, 3))
    torch.testing.assert_close(crop_network(crops), expected, rtol=1e-4, atol=1e-5)
    assert expected.shape == (2, 1024) and expected.std() > 0.01


@torch.no_grad()
def test_pixels_are_normalised_as_torchvisions_weights_want_them(network, weights):
    """torchvision takes ImageNet's normalisation and turns it into that of -1 … 1."""
    model = Classifier(7, ClassifierOptions(backbone=GoogLeNetOptions(weights=weights))).eval()
    model.network.fc.load_state_dict(network.fc.state_dict())
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    normalised = (images / 255 - mean[:, None, None]) / std[:, None, None]
    theirs = get_model("googlenet", init_weights=False, num_classes=7, transform_input=True).eval()
    theirs.load_state_dict(network.state_dict())
    expected = theirs(normalised)
    torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-4)


def test_a_detector_has_no_auxiliary_classifier():
    with torch.device("meta"):
        backbone, box_head = GoogLeNetOptions(norm="batch", train_stages=5).build(multi_scale=False)
        crop_network = GoogLeNetOptions(norm="batch", train_stages=5).build_crop_network(64)
    parts = [sum(one.numel() for one in part.parameters()) for part in (backbone, box_head, crop_network)]
    assert parts[0] + parts[1] == parts[2] == 6_624_904 - (1024 + 1) * 1000


def test_the_default_freezes_two_stages():
    with torch.device("meta"):
        backbone, box_head = GoogLeNetOptions(norm="batch").build(multi_scale=False)
    frozen = {name.split(".")[1] for name, one in backbone.named_parameters() if not one.requires_grad}
    trained = {name.split(".")[1] for name, one in backbone.named_parameters() if one.requires_grad}
    assert trained == {"inception3", "inception4"}
    assert frozen == {"conv1", "conv2"}
    assert all(one.requires_grad for one in box_head.parameters())
    kinds = {type(layer) for layer in backbone.body.conv2.modules() if "Norm" in type(layer).__name__}
    assert kinds == {FrozenBatchNorm2d}


@pytest.mark.parametrize("norm", ["frozen", "batch", "sync"])
@torch.no_grad()
def test_published_weights_mean_the_same_under_each_norm_that_takes_them(norm, network, tmp_path, monkeypatch):
    """torchvision's norms have an epsilon of their own, 0.001."""
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(network.state_dict(), tmp_path / "hub" / "checkpoints" / "googlenet-1378be20.pth")
    stem = GoogLeNetOptions(norm=norm, weights="IMAGENET1K_V1").network(7).eval().conv1
    pixels = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(stem(pixels), network.conv1(pixels), rtol=1e-6, atol=1e-6)
