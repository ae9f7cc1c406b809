import pydantic
import pytest
import torch
from torch import nn

from detect.backbones import CSPDarknetOptions, FeatureInfo, FPNOptions
from detect.backbones.csp import CSPLayer
from detect.backbones.csp_darknet import GREY, SpatialPyramidPooling
from detect.backbones.norm import FrozenBatchNorm2d
from detect.errors import UserError
from detect.models import Classifier, ClassifierOptions

SMALL = {"depth": 0.33, "width": 1 / 16}


@torch.no_grad()
def livened(network: nn.Module) -> nn.Module:
    """Redraw weights and statistics, so that features differ from cell to cell."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        elif isinstance(layer, nn.BatchNorm2d):
            for statistic in (layer.weight, layer.running_var):
                statistic.uniform_(0.8, 1.25)
            for statistic in (layer.bias, layer.running_mean):
                statistic.normal_(std=0.1)
    return network.eval()


@pytest.mark.parametrize(("height", "width"), [(32, 32), (96, 160), (608, 1024)])
@pytest.mark.parametrize("depthwise", [False, True])
def test_all_levels_have_as_many_cells_as_promised(height, width, depthwise):
    options = CSPDarknetOptions(depth=0.67, width=0.375, depthwise=depthwise)
    with torch.device("meta"):
        backbone, box_head = options.build(multi_scale=True)
        for images in (0, 2):
            maps = backbone(torch.empty(images, 3, height, width))
            assert {name: tuple(features.shape) for name, features in maps.items()} == {
                f"dark{i}": (images, 24 << (i - 1), height >> i, width >> i) for i in range(2, 6)
            }
    assert box_head is None
    assert backbone.levels == {f"dark{i}": FeatureInfo(24 << (i - 1), 1 << i) for i in range(2, 6)}


@pytest.mark.parametrize("regions", [0, 1, 3])
def test_without_a_neck_dark5_is_the_box_head(regions):
    with torch.device("meta"):
        backbone, box_head = CSPDarknetOptions().build(multi_scale=False)
        (features,) = backbone(torch.empty(1, 3, 64, 96)).values()
        assert box_head(torch.empty(regions, 256, 14, 14)).shape == (regions, 512)
    assert features.shape == (1, 256, 4, 6) and backbone.levels == {"dark4": FeatureInfo(256, 16)}
    assert (box_head.channels_in, box_head.pooled, box_head.channels) == (256, 14, 512)


def test_an_fpn_runs_on_its_levels():
    with torch.device("meta"):
        backbone, _ = CSPDarknetOptions(**SMALL).build(multi_scale=True)
        neck = FPNOptions(channels=8, first_level=3).build(backbone.levels, CSPDarknetOptions().norm)
        pyramid = neck(backbone(torch.empty(2, 3, 64, 64)))
    assert [features.shape[-1] for features in pyramid] == [8, 4, 2, 1, 1]


@pytest.mark.parametrize("size", [32, 227])
def test_crops_of_even_and_odd_sizes(size):
    network = CSPDarknetOptions(**SMALL).build_crop_network(size).eval()
    assert network(torch.randn(2, 3, size, size)).shape == (2, 64)


@pytest.mark.parametrize(("train_stages", "frozen"), [(None, 0), (5, 0), (2, 3), (0, 5)])
def test_the_first_stages_are_frozen(train_stages, frozen):
    backbone, _ = CSPDarknetOptions(**SMALL, train_stages=train_stages).build(multi_scale=True)
    for number, stage in enumerate(backbone.body.values()):
        is_frozen = number < frozen
        assert all(parameter.requires_grad != is_frozen for parameter in stage.parameters())
        norms = [m for m in stage.modules() if isinstance(m, nn.BatchNorm2d | FrozenBatchNorm2d)]
        assert norms and all(norm.eps == 1e-3 for norm in norms)
        assert all(isinstance(norm, FrozenBatchNorm2d) == is_frozen for norm in norms)


def test_batch_norms_have_yoloxs_constants():
    network = CSPDarknetOptions(**SMALL).make(2)
    norms = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert norms and {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.03)}
    assert all(layer.bias is None for layer in network.modules() if isinstance(layer, nn.Conv2d))


@torch.no_grad()
def test_the_stem_is_a_3x3_convolution_of_2x2_pixels():
    """Grey is added first: pixels come with the grey subtracted, and a canvas ends in zeros, not in grey."""
    stem = livened(CSPDarknetOptions(**SMALL).make(2).stem)[0]
    pixels = 50 * torch.randn(1, 3, 8, 12)
    blocks = nn.functional.pixel_unshuffle(pixels + GREY, 2)  # channels: colour, row, column
    kernels = stem.convolution.weight.unflatten(3, (3, 2)).unflatten(2, (3, 2))  # [c, colour, y, row, x, column]
    kernels = kernels.permute(0, 1, 3, 5, 2, 4).flatten(1, 3)
    expected = stem.activation(stem.norm(nn.functional.conv2d(blocks, kernels, padding=1)))
    torch.testing.assert_close(stem(pixels), expected, rtol=1e-4, atol=1e-3)


@torch.no_grad()
def test_pools_in_a_row_are_larger_pools():
    pooling = livened(SpatialPyramidPooling(8))
    x = torch.randn(2, 8, 17, 9)
    reduced = pooling.reduce(x)
    pools = [nn.functional.max_pool2d(reduced, size, stride=1, padding=size // 2) for size in (5, 9, 13)]
    torch.testing.assert_close(pooling(x), pooling.merge(torch.cat([reduced, *pools], dim=1)))


@torch.no_grad()
@pytest.mark.parametrize("shortcut", [False, True])
def test_a_csp_layer_by_its_parts(shortcut):
    layer = livened(CSPLayer(6, 8, count=2, shortcut=shortcut, depthwise=False))
    x = torch.randn(1, 6, 5, 5)
    main = layer.main(x)
    for bottleneck in layer.bottlenecks:
        main = bottleneck.spatial(bottleneck.reduce(main)) + (main if shortcut else 0)
    torch.testing.assert_close(layer(x), layer.merge(torch.cat([main, layer.side(x)], dim=1)))


@torch.no_grad()
def test_a_classifier_pretrains_the_backbone(tmp_path):
    classifier = Classifier(3, ClassifierOptions(backbone=CSPDarknetOptions(**SMALL)))
    livened(classifier.network)
    images = torch.randint(0, 256, (2, 3, 48, 80), dtype=torch.uint8)
    assert classifier(images).shape == (2, 3)
    path = tmp_path / "classifier.pth"
    torch.save(classifier.network.state_dict(), path)
    backbone, _ = CSPDarknetOptions(**SMALL, weights=str(path)).build(multi_scale=True)
    pixels = torch.randn(1, 3, 32, 64)
    expected = pixels
    maps = backbone.eval()(pixels)
    for name in ("stem", "dark2", "dark3", "dark4", "dark5"):
        expected = getattr(classifier.network, name)(expected)
        if name in maps:
            torch.testing.assert_close(maps[name], expected)
    assert len(maps) == 4


@pytest.mark.parametrize("weights", ["DEFAULT", "IMAGENET1K_V1"])
def test_names_of_weights_are_refused(weights):
    with pytest.raises(UserError, match=rf"^weights: {weights}: torchvision has none for csp_darknet; give a \.pth, "):
        CSPDarknetOptions(weights=weights).network()


def test_it_compiles_as_one_graph(unchecked):
    backbone, _ = CSPDarknetOptions(**SMALL, depthwise=True).build(multi_scale=True)
    pixels = torch.randn(1, 3, 32, 64)
    compiled = torch.compile(backbone.eval(), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(pixels), backbone(pixels))


@pytest.mark.parametrize("values", [{"width": 0.01}, {"depth": 0}, {"width": 1e9}, {"depth": 1e6}, {"train_stages": 6}])
def test_options_are_checked(values):
    with pytest.raises(pydantic.ValidationError):
        CSPDarknetOptions(**values)
