import copy
from collections import OrderedDict

import jaxtyping
import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torchvision.models import get_model

from detect.backbones import FeatureInfo, FPNOptions, ResNet, ResNetOptions
from detect.backbones.backbone import frozen_stages
from detect.backbones.norm import FrozenBatchNorm2d
from detect.errors import UserError

DEPTHS = [18, 34, 50, 101, 152]


@pytest.mark.parametrize("depth", DEPTHS)
def test_pyramid_channels_and_strides_are_true(depth):
    with torch.device("meta"):
        backbone, box_head = ResNetOptions(depth).build(multi_scale=True)
        neck = FPNOptions().build(backbone.levels, "frozen")
        for images in (1, 2):
            maps = neck(backbone(torch.empty(images, 3, 64, 160)))
            expected = [(images, 256, 16, 40), (images, 256, 8, 20), (images, 256, 4, 10), (images, 256, 2, 5)]
            assert [tuple(features.shape) for features in maps] == [*expected, (images, 256, 1, 3)]
    assert neck.levels == tuple(FeatureInfo(256, stride) for stride in (4, 8, 16, 32, 64))
    assert box_head is None


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("last_stage", [4, 5])
def test_channels_and_strides_of_all_levels_are_true(depth, last_stage):
    with torch.device("meta"):
        backbone, _ = ResNetOptions(depth, last_stage=last_stage).build(multi_scale=True)
        for images in (0, 1, 2):
            maps = backbone(torch.empty(images, 3, 64, 160))
            assert {name: tuple(features.shape) for name, features in maps.items()} == {
                name: (images, level.channels, 64 // level.stride, 160 // level.stride)
                for name, level in backbone.levels.items()
            }
    widths = (64, 128, 256, 512) if depth < 50 else (256, 512, 1024, 2048)
    levels = {f"layer{i}": FeatureInfo(width, 2 << i) for i, width in enumerate(widths, start=1)}
    if last_stage == 4:
        del levels["layer4"]
    assert backbone.levels == levels and list(backbone.levels) == list(levels)


@pytest.mark.parametrize("depth", DEPTHS)
def test_a_pyramid_without_stage_5_ends_a_level_earlier(depth):
    with torch.device("meta"):
        backbone, box_head = ResNetOptions(depth, last_stage=4).build(multi_scale=True)
        neck = FPNOptions().build(backbone.levels, "frozen")
        maps = neck(backbone(torch.empty(2, 3, 64, 160)))
    assert [tuple(features.shape[1:]) for features in maps] == [(256, 16, 40), (256, 8, 20), (256, 4, 10), (256, 2, 5)]
    assert neck.levels == tuple(FeatureInfo(256, stride) for stride in (4, 8, 16, 32))
    assert box_head is None
    assert list(backbone.body) == ["stem", "layer1", "layer2", "layer3"]


@pytest.mark.parametrize("depth", DEPTHS)
def test_c4_channels_and_strides_are_true(depth):
    with torch.device("meta"):
        backbone, box_head = ResNetOptions(depth).build(multi_scale=False)
        (features,) = backbone(torch.empty(2, 3, 64, 96)).values()
        assert features.shape == (2, backbone.levels["layer3"].channels, 4, 6)
        for regions in (0, 1, 5):
            pooled = torch.empty(regions, box_head.channels_in, box_head.pooled, box_head.pooled)
            assert box_head(pooled).shape == (regions, box_head.channels)
    assert backbone.levels == {"layer3": FeatureInfo(256 if depth < 50 else 1024, stride=16)}
    assert (box_head.pooled, box_head.channels) == (14, 512 if depth < 50 else 2048)


def network_and_file(depth, folder):
    """A network of torchvision's with statistics that matter, and its file."""
    network = get_model(f"resnet{depth}").eval()
    generator = torch.Generator().manual_seed(0)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.uniform_(-0.1, 0.1, generator=generator)
            layer.running_var.uniform_(0.5, 1.5, generator=generator)
    torch.save(network.state_dict(), folder / "network.pth")
    return network, str(folder / "network.pth")


@pytest.mark.parametrize(("depth", "norm"), [(18, "frozen"), (18, "batch"), (50, "frozen")])
def test_box_head_after_backbone_is_the_network_up_to_its_classifier(depth, norm, tmp_path):
    network, file = network_and_file(depth, tmp_path)
    network.fc = nn.Identity()
    backbone, box_head = ResNetOptions(depth, norm=norm, weights=file).build(multi_scale=False)
    pixels = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        (features,) = backbone.eval()(pixels).values()
        assert features.shape[-2:] == (box_head.pooled, box_head.pooled)
        torch.testing.assert_close(box_head.eval()(features), network(pixels), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("depth", "norm", "size"), [(18, "frozen", 224), (18, "batch", 65), (50, "frozen", 64)])
def test_the_crop_network_is_the_network_up_to_its_classifier(depth, norm, size, tmp_path):
    network, file = network_and_file(depth, tmp_path)
    network.fc = nn.Identity()
    crop_network = ResNetOptions(depth, norm=norm, weights=file).build_crop_network(size).eval()
    crops = torch.randn(2, 3, size, size)
    with torch.no_grad():
        expected = network(crops)
        torch.testing.assert_close(crop_network.forward_layers(crops), {"pool5": expected}, rtol=1e-6, atol=1e-6)
        assert torch.equal(crop_network(crops), crop_network.forward_layers(crops)["pool5"])
    assert expected.std() > 0


@pytest.mark.parametrize("train_stages", [0, 2, 5])
def test_the_last_stages_of_the_crop_network_learn(train_stages):
    with torch.device("meta"):
        crop_network = ResNetOptions(18, norm="batch", train_stages=train_stages).build_crop_network(64)
    for place, stage in enumerate(crop_network.body):
        trainable = place >= 5 - train_stages
        assert all(parameter.requires_grad == trainable for parameter in stage.parameters())
        assert any(isinstance(layer, nn.BatchNorm2d) for layer in stage.modules()) == trainable


@pytest.mark.parametrize("last_stage", [4, 5])
def test_the_pyramid_stands_on_the_networks_stages(last_stage, tmp_path):
    network, file = network_and_file(18, tmp_path)
    backbone, _ = ResNetOptions(18, weights=file, last_stage=last_stage).build(multi_scale=True)
    neck = FPNOptions().build(backbone.levels, "frozen")
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        stages, x = {}, network.maxpool(network.relu(network.bn1(network.conv1(pixels))))
        for name in ("layer1", "layer2", "layer3", "layer4")[: last_stage - 1]:
            x = stages[name] = getattr(network, name)(x)
        torch.testing.assert_close(backbone(pixels), stages, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(neck(backbone(pixels)), neck(stages), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("train_stages", [0, 2, 3, 5])
@pytest.mark.parametrize("norm", ["frozen", "batch", "group"])
def test_the_last_stages_learn(train_stages, norm):
    with torch.device("meta"):
        backbone, box_head = ResNetOptions(18, norm=norm, train_stages=train_stages).build(multi_scale=False)
    for place, stage in enumerate([*backbone.body.values(), box_head]):
        trainable = place >= 5 - train_stages
        assert all(parameter.requires_grad == trainable for parameter in stage.parameters())
        assert any(isinstance(layer, nn.BatchNorm2d) for layer in stage.modules()) == (trainable and norm == "batch")


def test_a_pyramid_is_always_trained():
    with torch.device("meta"):
        backbone, _ = ResNetOptions(18, train_stages=0).build(multi_scale=True)
        neck = FPNOptions().build(backbone.levels, "frozen")
    assert all(parameter.requires_grad for parameter in neck.parameters())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())


@pytest.mark.parametrize("train_stages", [-1, 6])
def test_only_five_stages_can_learn(train_stages):
    with pytest.raises(UserError, match=rf"train_stages: {train_stages}: .*give 0 … 5"):
        frozen_stages(OrderedDict((f"stage{i}", nn.Sequential()) for i in range(5)), train_stages)


def test_a_step_moves_only_trained_stages():
    torch.manual_seed(0)
    backbone, _ = ResNetOptions(18, norm="batch", train_stages=2).build(multi_scale=True)
    model = nn.ModuleDict({"backbone": backbone, "neck": FPNOptions().build(backbone.levels, "batch")})
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model.train()
    maps = model["neck"](backbone(torch.randn(2, 3, 64, 64)))
    sum((features * torch.randn_like(features)).sum() for features in maps).backward()
    optimizer.step()

    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    frozen = tuple(f"backbone.{part}" for part in ("mean", "std", "body.stem.", "body.layer1.", "body.layer2."))
    assert changed == {key for key in before if not key.startswith(frozen)}


class Pyramid(nn.Module):
    """A backbone and a neck on it."""

    def __init__(self, backbone, neck):
        super().__init__()
        self.backbone, self.neck = backbone, neck

    def forward(self, pixels):
        return self.neck(self.backbone(pixels))


def test_a_resnet_by_itself_has_all_its_levels():
    with torch.device("meta"):
        backbone = ResNet()
        assert [features.shape[1] for features in backbone(torch.empty(1, 3, 64, 64)).values()] == [
            256,
            512,
            1024,
            2048,
        ]
        assert list(ResNet(ResNetOptions(18)).levels) == ["layer1", "layer2", "layer3", "layer4"]


def norms(module):
    kinds = (FrozenBatchNorm2d, nn.BatchNorm2d, nn.GroupNorm)
    return {type(layer) for layer in module.modules() if isinstance(layer, kinds)}


@pytest.mark.parametrize(
    ("norm", "in_body", "in_pyramid"),
    [
        ("frozen", FrozenBatchNorm2d, None),
        ("batch", nn.BatchNorm2d, nn.BatchNorm2d),
        ("group", nn.GroupNorm, nn.GroupNorm),
    ],
)
def test_norms(norm, in_body, in_pyramid):
    with torch.device("meta"):
        options = ResNetOptions(18, norm=norm, train_stages=5)
        backbone, _ = options.build(multi_scale=True)
        neck = FPNOptions().build(backbone.levels, options.norm)
    assert norms(backbone.body) == {in_body}
    assert norms(neck) == ({in_pyramid} if in_pyramid else set())


def test_normalisation_is_imagenets_and_travels_in_the_state():
    backbone, _ = ResNetOptions(18).build(multi_scale=False)
    torch.testing.assert_close(backbone.state_dict()["mean"] / 255, torch.tensor([0.485, 0.456, 0.406]))
    torch.testing.assert_close(backbone.state_dict()["std"] / 255, torch.tensor([0.229, 0.224, 0.225]))


def test_channels_last_stays_and_gives_the_same():
    backbone, _ = ResNetOptions(18).build(multi_scale=True)
    model = Pyramid(backbone, FPNOptions().build(backbone.levels, "frozen"))
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = model(pixels)
        model = model.to(memory_format=torch.channels_last)
        maps = model(pixels.to(memory_format=torch.channels_last))
    assert all(features.is_contiguous(memory_format=torch.channels_last) for features in maps)
    torch.testing.assert_close(maps, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("norm", ["frozen", "batch", "group"])
def test_trains_under_autocast(norm):
    backbone, _ = ResNetOptions(18, norm=norm).build(multi_scale=True)
    model = Pyramid(backbone, FPNOptions().build(backbone.levels, norm))
    with torch.autocast("cpu", torch.bfloat16):
        maps = model(torch.randn(2, 3, 64, 64))
    assert {features.dtype for features in maps} <= {torch.bfloat16, torch.float32}
    sum(features.float().square().mean() for features in maps).backward()
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


def test_nothing_depends_on_values():
    with FakeTensorMode():
        backbone, _ = ResNetOptions(18).build(multi_scale=True)
        model = Pyramid(backbone, FPNOptions().build(backbone.levels, "frozen"))
        sum(features.sum() for features in model(torch.randn(2, 3, 64, 64))).backward()


@pytest.mark.parametrize("first_level", [None, 2, 3])
def test_compiles_as_one_graph(first_level, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # no checks of shapes inside the graph
    model, _ = ResNetOptions(18).build(multi_scale=first_level is not None)
    if first_level is not None:
        model = Pyramid(model, FPNOptions(first_level=first_level).build(model.levels, "frozen"))
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    pixels = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(compiled(pixels), model(pixels))


# ---- strides and dilation --------------------------------------------------------------------------------------------


def parameters(*modules):
    return {key: value.shape for module in modules for key, value in module.state_dict().items()}


def test_strides_and_dilation_change_no_shape_of_a_weight():
    with torch.device("meta"):
        usual, _ = ResNetOptions(50).build(multi_scale=True)
        moved, _ = ResNetOptions(50, stride_in_1x1=True).build(multi_scale=True)
        cut, res5 = ResNetOptions(50).build(multi_scale=False)
        dilated, box_head = ResNetOptions(50, dilated=True).build(multi_scale=False)
    assert parameters(usual) == parameters(moved)
    assert box_head is None
    stage5 = {f"body.layer4.{key}": value for key, value in parameters(res5.stage).items()}
    assert parameters(dilated) == parameters(cut) | stage5
    assert dilated.levels == {"layer4": FeatureInfo(2048, stride=16)}


@pytest.mark.parametrize("stride_in_1x1", [False, True])
def test_the_stride_is_in_one_convolution_of_a_bottleneck(stride_in_1x1):
    with torch.device("meta"):
        body = ResNetOptions(50, stride_in_1x1=stride_in_1x1).build(multi_scale=True)[0].body
    for stage, stride in (("layer1", 1), ("layer2", 2), ("layer3", 2), ("layer4", 2)):
        first, *others = body[stage]
        strides = (first.conv1.stride, first.conv2.stride)
        assert strides == ((stride, stride), (1, 1))[:: 1 if stride_in_1x1 else -1]
        assert first.downsample[0].stride == (stride, stride)
        assert all(block.conv1.stride == block.conv2.stride == (1, 1) for block in others)


@torch.no_grad()
def test_every_second_cell_of_a_dilated_stage_is_that_of_the_stage():
    # With the stride before all 3×3 convolutions, a dilated one sees at even cells what the other sees.
    torch.manual_seed(0)
    backbone, box_head = ResNetOptions(50, norm="batch", stride_in_1x1=True).build(multi_scale=False)
    dilated, _ = ResNetOptions(50, norm="batch", stride_in_1x1=True, dilated=True).build(multi_scale=False)
    stage5 = {f"body.layer4.{key}": value for key, value in box_head.stage.state_dict().items()}
    dilated.load_state_dict(backbone.state_dict() | stage5)
    pixels = torch.randn(2, 3, 64, 96)
    for module in (backbone, box_head, dilated):
        module.eval()
    (fine,) = dilated(pixels).values()
    coarse = box_head.stage(backbone(pixels)["layer3"])
    assert fine.shape == (2, 2048, 4, 6) and coarse.shape == (2, 2048, 2, 3)
    assert coarse.std() > 0
    torch.testing.assert_close(fine[..., ::2, ::2], coarse, rtol=1e-4, atol=1e-4 * float(coarse.std()))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (lambda: ResNetOptions(18, stride_in_1x1=True).build(multi_scale=True), "ResNet-18 has no bottlenecks"),
        (
            lambda: ResNetOptions(50, dilated=True).build(multi_scale=True),
            r"^backbone\.dilated: a neck needs stage 5 at stride 32; leave it out, or set neck to null$",
        ),
    ],
)
def test_strides_that_cannot_be_are_refused(network, message):
    with pytest.raises(UserError, match=message), torch.device("meta"):
        network()
