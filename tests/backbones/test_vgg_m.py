import pytest
import torch
from torch import nn
from torch.nn import functional as F

from detect.backbones import FeatureInfo, VGGMOptions
from detect.backbones.norm import LocalResponseNorm
from detect.errors import UserError


@pytest.fixture
def quick(monkeypatch):
    """Leave linear layers uninitialised: random numbers for millions of weights take seconds."""
    monkeypatch.setattr(nn.Linear, "reset_parameters", lambda layer: None)


def state() -> dict[str, torch.Tensor]:
    """A state dict as the docstring has it; the large matrices repeat one row, which makes a small file."""
    shapes = {
        "features.0": (96, 3, 7, 7),
        "features.4": (256, 96, 5, 5),
        "features.8": (512, 256, 3, 3),
        "features.10": (512, 512, 3, 3),
        "features.12": (512, 512, 3, 3),
    }
    values = {f"{layer}.weight": torch.randn(shape) * shape[1] ** -0.5 / 4 for layer, shape in shapes.items()}
    values |= {f"{layer}.bias": torch.randn(shape[0]) / 10 for layer, shape in shapes.items()}
    for layer, rows, columns in (("classifier.0", 4096, 18432), ("classifier.3", 1024, 4096)):
        values |= {f"{layer}.weight": torch.randn(columns).expand(rows, -1), f"{layer}.bias": torch.randn(rows)}
    return values


def test_channels_and_strides_are_true():
    with torch.device("meta"):
        backbone, box_head = VGGMOptions().build(multi_scale=False)
        for images in (0, 1, 2):
            (features,) = backbone(torch.empty(images, 3, 64, 96)).values()
            assert features.shape == (images, 512, 4, 6)
        for regions in (0, 1, 5):
            assert box_head(torch.empty(regions, 512, 6, 6)).shape == (regions, 1024)
    assert backbone.levels == {"conv5": FeatureInfo(channels=512, stride=16)}
    assert (box_head.channels_in, box_head.pooled, box_head.channels) == (512, 6, 1024)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (32, 64), (608, 1024), (992, 800)])
def test_every_canvas_has_as_many_cells_as_promised(height, width):
    with torch.device("meta"):
        (features,) = VGGMOptions().build(multi_scale=False)[0](torch.empty(1, 3, height, width)).values()
    assert features.shape[-2:] == (height // 16, width // 16)


def test_the_crop_network_has_the_sizes_of_the_papers_network():
    """Of 224 pixels conv1 leaves 109, rounding up the pools leave 54 and 13 and 6, and conv2 26."""
    sides = []
    with torch.device("meta"):
        crop_network = VGGMOptions().build_crop_network(224)
        for layer in crop_network.modules():
            if isinstance(layer, nn.Conv2d | nn.MaxPool2d):
                layer.register_forward_hook(lambda layer, given, out: sides.append(out.shape[-1]))
        crop_network(torch.empty(1, 3, 224, 224))
    assert sides == [109, 54, 26, 13, 13, 13, 13, 6]


def test_the_crop_network_is_caffes_network(quick, tmp_path):
    """The layers of Fast R-CNN's VGG_CNN_M_1024/train.prototxt and the original's pool5, one after the other."""
    values, file = state(), tmp_path / "vgg_m.pth"
    torch.save(values, file)

    def convolution(x, place, **geometry):
        return F.relu(F.conv2d(x, values[f"features.{place}.weight"], values[f"features.{place}.bias"], **geometry))

    def norm_and_pool(x):
        return F.max_pool2d(F.local_response_norm(x, 5, alpha=5e-4, beta=0.75, k=2.0), 3, 2, ceil_mode=True)

    crops = 50 * torch.randn(1, 3, 80, 80)
    x = norm_and_pool(convolution(crops, 0, stride=2))
    x = norm_and_pool(convolution(x, 4, stride=2, padding=1))
    for place in (8, 10, 12):
        x = convolution(x, place, padding=1)
    pool5 = F.adaptive_avg_pool2d(F.max_pool2d(x, 3, 2, ceil_mode=True), 6).flatten(1)
    fc6 = F.relu(pool5 @ values["classifier.0.weight"][0] + values["classifier.0.bias"])[None]
    fc7 = F.relu(fc6 @ values["classifier.3.weight"][0] + values["classifier.3.bias"])[None]

    crop_network = VGGMOptions(weights=str(file)).build_crop_network(80).eval()
    with torch.no_grad():
        layers = crop_network.forward_layers(crops)
    torch.testing.assert_close(layers, {"pool5": pool5, "fc6": fc6, "fc7": fc7}, rtol=1e-4, atol=1e-4)
    assert all(layer.std() > 0 for layer in layers.values())


def test_cells_are_centred_on_the_multiples_of_16(quick):
    """Of an image 16 n + 1 pixels wide that maps such centres, and only such, onto one another by reflection."""
    backbone, _ = VGGMOptions().build(multi_scale=False)
    pixels = torch.randn(1, 3, 49, 65)
    with torch.no_grad():
        for layer in backbone.modules():
            if isinstance(layer, nn.Conv2d):
                layer.weight.add_(layer.weight.flip(-1)).add_(layer.weight.flip(-2))
        (features,) = backbone(pixels).values()
        assert features.shape[-2:] == (4, 5)
        assert features.std() > 0.01
        torch.testing.assert_close(backbone(pixels.flip(-1))["conv5"], features.flip(-1), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(backbone(pixels.flip(-2))["conv5"], features.flip(-2), rtol=1e-4, atol=1e-4)


def test_features_off_the_border_are_those_of_the_crop_network(quick):
    """Its cells are centred on 17, 33, 49 …: on 32, 48, 64 … once 15 rows and columns of pixels are gone."""
    backbone, crop_network = VGGMOptions().build(multi_scale=False)[0], VGGMOptions().build_crop_network(224)
    crop_network.body.load_state_dict(backbone.body.state_dict())
    pixels = torch.randn(1, 3, 192, 192)
    with torch.no_grad():
        (ours,) = backbone(pixels).values()
        theirs = crop_network.body(pixels[..., 15:, 15:])
    # A cell sees 139 pixels, 69 to each side of its centre: the others see padding.
    assert (ours.shape[-2:], theirs.shape[-2:]) == ((12, 12), (10, 10))
    torch.testing.assert_close(ours[..., 6:8, 6:8], theirs[..., 4:6, 4:6], rtol=1e-4, atol=1e-5)
    assert ours[..., 6:8, 6:8].std() > 0.01


def test_the_default_freezes_what_fast_rcnn_freezes():
    with torch.device("meta"):
        backbone, _ = VGGMOptions().build(multi_scale=False)
    frozen = {name for name, parameter in backbone.named_parameters() if not parameter.requires_grad}
    assert frozen == {"body.conv1.0.weight", "body.conv1.0.bias"}


@pytest.mark.parametrize("name", ["IMAGENET1K_V1", "DEFAULT", "", "vgg_m.caffemodel"])
def test_no_name_of_weights_is_known(name):
    with pytest.raises(UserError, match=rf"^weights: {name}: torchvision has none .*a \.pth, .*file$"):
        VGGMOptions(weights=name).build_crop_network(224)


# ---- the norm --------------------------------------------------------------------------------------------------------


def test_norm_by_hand():
    x = torch.tensor([100.0, 0, 0, 0, 200, 0, 0]).view(1, 7, 1, 1)
    # The first sees its own square, 1e4, and not that of the fifth; the fifth sees none but its own, 4e4.
    expected = torch.tensor([100 / 3**0.75, 0, 0, 0, 200 / 6**0.75, 0, 0])
    torch.testing.assert_close(LocalResponseNorm()(x).flatten(), expected)


@pytest.mark.parametrize("shape", [(0, 7, 3, 4), (2, 1, 3, 4), (1, 96, 1, 1), (2, 9, 3, 4)])
def test_norm_is_torchs_with_its_gradient(shape):
    x = (100 * torch.randn(shape)).requires_grad_()
    ours, theirs = LocalResponseNorm()(x), F.local_response_norm(x, 5, alpha=5e-4, beta=0.75, k=2.0)
    torch.testing.assert_close(ours, theirs)
    upstream = torch.randn(shape)
    torch.testing.assert_close(*(torch.autograd.grad(y, x, upstream)[0] for y in (ours, theirs)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_norm_takes_its_squares_in_float32(dtype):
    x = torch.full((1, 5, 2, 3), 1000.0, dtype=dtype).to(memory_format=torch.channels_last)
    y = LocalResponseNorm()(x)
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y.float(), LocalResponseNorm()(x.float()), rtol=1e-2, atol=0)
    assert y.isfinite().all()
    assert (y > 0).all()
