"""The network as a table, against published and hand-computed numbers; on the meta device, except small networks."""

import io
import math

import pytest
import torch
import torchvision
from rich.console import Console
from torch import nn
from torch.nn import functional as F

from detect.backbones import FPNOptions, ResNetOptions
from detect.cli import main
from detect.models import FasterRCNN, FasterRCNNOptions, FastRCNN, FastRCNNOptions, ProposalCounts, RPNOptions
from detect.models.summary import ROWS, summarize, summarize_on_image
from detect.report.network_table import print_summary

META = torch.device("meta")


def of_torchvision(name, **arguments):
    with META:
        return getattr(torchvision.models, name)(**arguments).eval()


def on_image(model, *shape, depth=None):
    return summarize(model.to(META), torch.empty(1, *(shape or (3, 224, 224)), device=META), depth=depth)


def rows(summary):
    return {layer.name: layer for layer in summary.layers}


def fields(summary):
    """The receptive field of each row, along its first axis."""
    return {layer.name: layer.receptive_field.size[0] for layer in summary.layers}


def strides(summary):
    return {layer.name: layer.receptive_field.stride[0] for layer in summary.layers}


def shapes(summary):
    """Of each row's first output, without the batch."""
    return [layer.shapes[0][1:] for layer in summary.layers]


# ---- small cases first -----------------------------------------------------------------------------------------------


def test_a_network_without_layers():
    summary = on_image(nn.Sequential())
    assert summary.layers == () and summary.flops == summary.parameters == summary.bytes == 0


def test_what_changes_nothing_has_no_row():
    assert on_image(nn.Sequential(nn.ReLU(), nn.Dropout(), nn.Identity())).layers == ()


def test_a_single_layer():
    (layer,) = on_image(nn.Conv2d(3, 8, (1, 7), stride=(1, 2), padding=(0, 3)), 3, 10, 20).layers
    assert (layer.name, layer.kind, layer.calls) == ("", "Conv2d 1×7/1×2", 1)
    assert layer.shapes == ((1, 8, 10, 10),)
    assert layer.receptive_field.size == (1, 7) and layer.receptive_field.stride == (1, 2)
    assert layer.parameters == 8 * 3 * 7 + 8 and layer.flops == 2 * (8 * 10 * 10) * (3 * 7)


def test_totals():
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).half()
    network[1].requires_grad_(False)
    summary = summarize(network, torch.empty(2, 3, 12, 12, dtype=torch.half))
    assert (summary.parameters, summary.trainable, summary.unused) == (8 * 27 + 8 + 16, 8 * 27 + 8, 0)
    assert summary.bytes == 2 * summary.parameters
    assert summary.flops == 2 * (2 * 8 * 10 * 10) * 27


def test_the_model_is_left_as_it_was():
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    on_image(network)
    assert network.training and not any(part._forward_hooks or part._forward_pre_hooks for part in network.modules())
    with pytest.raises(RuntimeError, match="channel"):
        on_image(network, 4, 8, 8)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in network.modules())


# ---- published networks ----------------------------------------------------------------------------------------------


def test_lenet():
    """LeNet-5 with whole connections: LeCun et al. 1998, §II.B, 120 · 16 · 25 + 120 weights in C5."""
    network = nn.Sequential(
        *(nn.Conv2d(1, 6, 5), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(6, 16, 5), nn.Tanh(), nn.AvgPool2d(2)),
        *(nn.Conv2d(16, 120, 5), nn.Tanh(), nn.Flatten(), nn.Linear(120, 84), nn.Tanh(), nn.Linear(84, 10)),
    )
    summary = on_image(network, 1, 32, 32)
    assert [layer.parameters for layer in summary.layers if layer.parameters] == [156, 2416, 48120, 10164, 850]
    assert summary.parameters == 61706
    assert shapes(summary)[:5] == [(6, 28, 28), (6, 14, 14), (16, 10, 10), (16, 5, 5), (120, 1, 1)]
    # C5 sees the 32 pixels; a linear layer on its one cell sees no more.
    assert list(fields(summary).values()) == [5, 6, 14, 16, 32, 32, 32, 32]
    assert list(strides(summary).values())[:5] == [1, 2, 2, 4, 4]


def test_alexnet():
    """Krizhevsky 2014 in torchvision's form."""
    summary = on_image(of_torchvision("alexnet"))
    sides = [shape[-1] for shape in shapes(summary) if len(shape) == 3]
    assert sides == [55, 27, 27, 13, 13, 13, 13, 6]
    assert list(fields(summary).values()) == [11, 19, 51, 67, 99, 131, 163, 195, math.inf, math.inf, math.inf]
    assert list(strides(summary).values())[:8] == [4, 8, 8, 16, 16, 16, 16, 32]
    assert summary.parameters == 61_100_840
    assert summary.flops == 2 * 714_188_480
    assert summary.layers[0].kind == "Conv2d 11×11/4" and summary.layers[1].kind == "MaxPool2d 3×3/2"


def test_vgg():
    summary = on_image(of_torchvision("vgg16"))
    assert summary.parameters == 138_357_544
    assert summary.flops == pytest.approx(2 * 15.47e9, rel=1e-3)
    seen = fields(summary)
    assert (seen["features.28"], seen["features.30"]) == (196, 212)  # conv5_3, pool5
    assert strides(summary)["features.30"] == 32
    assert seen["classifier.0"] == math.inf


def test_googlenet():
    """Szegedy et al. 2015, Table 1; the auxiliary classifiers serve training alone."""
    network = of_torchvision("googlenet", init_weights=False)
    summary = on_image(network)
    layers = rows(summary)
    assert layers["inception3a"].shapes == ((1, 256, 28, 28),)
    assert layers["inception3a"].receptive_field.size == (43, 43)  # its widest branch has 3×3: 27 + 2 · 8
    assert layers["inception4e"].shapes == ((1, 832, 14, 14),)
    assert layers["conv1"].kind == "BasicConv2d 7×7/2" and layers["inception3a"].kind == "Inception"
    auxiliary = sum(p.numel() for part in (network.aux1, network.aux2) for p in part.parameters())
    assert summary.unused == auxiliary
    assert sum(layer.parameters for layer in summary.layers) == summary.parameters - auxiliary


def test_resnet18():
    summary = on_image(of_torchvision("resnet18"))
    assert fields(summary)["layer4.1"] == 435 and strides(summary)["layer4.1"] == 32


def test_resnet50():
    """torchvision's strides are in the 3×3 convolutions; 483 is of the paper's, in the first 1×1 of a block."""
    network = of_torchvision("resnet50")
    summary = on_image(network)
    assert fields(summary)["layer4.2"] == 427
    assert summary.flops == pytest.approx(2 * 4.09e9, rel=1e-3)
    for stage in (network.layer2, network.layer3, network.layer4):
        stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    summary = on_image(network)
    assert fields(summary)["layer4.2"] == 483 and rows(summary)["layer4.2"].shapes == ((1, 2048, 7, 7),)


def test_linear_layers_on_cells_are_convolutions():
    """ConvNeXt's blocks have linear layers on maps with channels last."""
    summary = on_image(of_torchvision("convnext_tiny"))
    # 4×4/4, three blocks of 7×7 at stride 4.
    assert fields(summary)["features.1.2"] == 4 + 3 * 6 * 4


# ---- single operations -----------------------------------------------------------------------------------------------


def test_dilation():
    summary = on_image(nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.Conv2d(4, 4, 3, dilation=3)), 3, 40, 40)
    assert list(fields(summary).values()) == [3, 3 + 2 * 3 * 2]
    assert summary.layers[1].kind == "Conv2d 3×3, dilation 3"


def test_groups():
    (layer,) = on_image(nn.Conv2d(4, 4, 3, groups=4), 4, 6, 6).layers
    assert layer.kind == "Conv2d 3×3, 4 groups"
    assert layer.flops == 2 * (4 * 4 * 4) * 9


@pytest.mark.parametrize(
    ("layer", "field", "stride"),
    [
        (nn.MaxPool2d(3), 1 + 2 * 2, 6),  # its stride is its kernel
        (nn.MaxPool2d(3, stride=1, dilation=2), 1 + 4 * 2, 2),
        (nn.AvgPool2d(2), 1 + 1 * 2, 4),
        (nn.AdaptiveAvgPool2d(4), 1 + 1 * 2, 4),  # 8 → 4 is a pool of 2×2
        (nn.AdaptiveAvgPool2d(8), 1, 2),
        (nn.AdaptiveMaxPool2d(3), 1 + 3 * 2, 2 * 8 / 3),  # the middle one of 3 takes the cells 2 … 5 of 8
        (nn.AdaptiveAvgPool2d(1), math.inf, math.inf),
        (nn.Flatten(), 1, 2),
        (nn.Upsample(scale_factor=2), 1, 1),
        (nn.Upsample(scale_factor=2, mode="bilinear"), 1 + 1 * 2, 1),
        (nn.ConvTranspose2d(3, 3, 4, stride=2), 1 + 1 * 2, 1),
    ],
    ids=lambda value: str(value) if isinstance(value, nn.Module) else "",
)
def test_windows(layer, field, stride):
    """Behind a 1×1 convolution of stride 2, on 8 × 8 cells."""
    summary = on_image(nn.Sequential(nn.Conv2d(3, 3, 1, stride=2), layer), 3, 16, 16)
    view = summary.layers[-1].receptive_field
    assert view.size == (field, field) and view.stride == (stride, stride)


def test_a_line_of_samples():
    network = nn.Sequential(nn.Conv1d(2, 4, 5, stride=2), nn.MaxPool1d(2), nn.AvgPool1d(3, stride=1))
    summary = summarize(network, torch.empty(1, 2, 100))
    assert [layer.receptive_field.size for layer in summary.layers] == [(5,), (7,), (15,)]
    assert [layer.kind for layer in summary.layers] == ["Conv1d 5/2", "MaxPool1d 2/2", "AvgPool1d 3"]


class Branches(nn.Module):
    """A 1×1, a 3×3 after another 3×3, and the mean over the map as a gate."""

    def __init__(self, gated):
        super().__init__()
        self.near, self.far, self.further = nn.Conv2d(2, 2, 1), *(nn.Conv2d(2, 2, 3, padding=1) for _ in range(2))
        self.gated = gated

    def forward(self, x):
        out = torch.cat([self.near(x), self.further(self.far(x)) + x], dim=1)
        return out * out.mean(dim=(2, 3), keepdim=True).sigmoid() if self.gated else out


def test_where_branches_meet_the_largest_counts():
    (block,) = on_image(nn.Sequential(Branches(gated=False)), 2, 9, 9, depth=1).layers
    assert block.receptive_field.size == (5, 5) and block.receptive_field.stride == (1, 1)
    assert block.kind == "Branches" and block.parameters == 6 + 2 * 38
    assert block.flops == 2 * (2 * 81) * (2 + 18 + 18)


def test_a_gate_from_the_whole_map_sees_everything_but_leaves_the_cells():
    summary = on_image(nn.Sequential(Branches(gated=True), nn.Conv2d(4, 2, 3, stride=2)), 2, 9, 9, depth=1)
    assert [layer.receptive_field.size for layer in summary.layers] == [(math.inf, math.inf)] * 2
    assert [layer.receptive_field.stride for layer in summary.layers] == [(1, 1), (2, 2)]


class Shared(nn.Module):
    """One head on two maps, a layer whose weights alone are used, and one that is not used."""

    def __init__(self):
        super().__init__()
        self.head, self.weights, self.idle = nn.Conv2d(3, 2, 3), nn.Linear(2, 5), nn.Linear(9, 9)

    def forward(self, x):
        maps = [self.head(x), self.head(F.max_pool2d(x, 2))]
        return F.linear(sum(part.mean(dim=(2, 3)) for part in maps), self.weights.weight, self.weights.bias)


def test_a_layer_that_runs_twice_and_what_a_forward_does_itself():
    summary = on_image(Shared(), 3, 8, 8)
    head, rest = summary.layers
    assert (head.name, head.calls, head.shapes[0], head.parameters) == ("head", 2, (1, 2, 6, 6), 3 * 2 * 9 + 2)
    assert head.flops == 2 * 2 * 27 * (36 + 4)
    assert (rest.name, rest.kind, rest.shapes[0], rest.parameters, rest.flops) == ("", "Shared", (1, 5), 15, 20)
    assert summary.unused == 90 and summary.flops == head.flops + 20


def test_shared_weights_count_once():
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    network[1].weight = network[0].weight
    summary = summarize(network, torch.empty(1, 4))
    assert [layer.parameters for layer in summary.layers] == [20, 4] and summary.parameters == 24


def test_depth():
    network = of_torchvision("resnet18")
    tables = [on_image(network, depth=depth) for depth in (1, 2, 3, 9)]
    lengths = [len(table.layers) for table in tables]
    assert lengths[0] < lengths[1] <= ROWS < lengths[2] < lengths[3]  # with the layers of its shortcuts
    assert {(table.flops, table.parameters) for table in tables} == {(tables[0].flops, 11_689_512)}
    for table in tables:
        assert sum(layer.flops for layer in table.layers) == table.flops
        assert sum(layer.parameters for layer in table.layers) == table.parameters
    assert on_image(network).layers == tables[1].layers


# ---- detectors -------------------------------------------------------------------------------------------------------


def test_a_detector_with_its_own_proposals():
    options = FasterRCNNOptions(
        backbone=ResNetOptions(depth=18, norm="batch", train_stages=5),
        neck=FPNOptions(channels=64),
        rpn=RPNOptions(testing=ProposalCounts(200, 70)),
    )
    with META:
        model = FasterRCNN(4, options).eval()
    summary, regions = summarize_on_image(model, 250, 310, proposals=0)  # on a canvas of 256 × 320
    layers = rows(summary)
    assert regions == 70 and summary.unused == 0
    head = layers["rpn.convolutions.0"]
    assert head.calls == 5 and head.shapes[0] == (1, 64, 64, 80)
    cells = 64 * 80 + 32 * 40 + 16 * 20 + 8 * 10 + 4 * 5
    assert head.flops == 2 * 64 * 64 * 9 * cells
    assert layers["rpn.anchors"].shapes == ((3 * cells, 4),) and layers["rpn.anchors"].receptive_field is None
    assert layers["backbone.body.layer4.1"].receptive_field.size == (435, 435)
    # P2 takes its part of C5's 435 pixels, and 3×3 cells of them.
    for layer in ("neck.output.0.0", "neck.output.0.1"):  # the convolution and its norm
        assert layers[layer].receptive_field.size == (443, 443)
        assert layers[layer].receptive_field.stride == (4, 4)
    pooled = layers["region_head.pooling"]
    assert (
        pooled.shapes == ((70, 64, 7, 7),)
        and pooled.receptive_field.of_region
        and pooled.receptive_field.size == (1, 1)
    )
    assert layers["region_head.box_head.layers.0"].flops == 2 * 70 * (64 * 49) * 1024
    assert not head.receptive_field.of_region and layers["region_head.predictor.scores"].shapes == ((70, 5),)


def test_a_detector_with_given_proposals():
    with META:
        backbone = ResNetOptions(depth=18, norm="batch", train_stages=5)
        model = FastRCNN(4, FastRCNNOptions(backbone=backbone, neck=None)).eval()
    summary, regions = summarize_on_image(model, 64, 64, proposals=30)
    layers = rows(summary)
    assert regions == 30 and layers["region_head.pooling"].shapes == ((30, 256, 14, 14),)
    box_head = [layer for layer in summary.layers if layer.name.startswith("region_head.box_head")]
    # res5 on cells of the region: 3×3/2, then three 3×3.
    assert box_head[-1].receptive_field.size == (3 + 3 * 2 * 2, 3 + 3 * 2 * 2) and box_head[
        -1
    ].receptive_field.stride == (2, 2)


# ---- the table and the command ---------------------------------------------------------------------------------------


def printed(summary, title="Title [1]"):
    text = io.StringIO()
    print_summary(summary, title, Console(file=text, width=100))
    return text.getvalue()


def test_the_table():
    text = printed(on_image(of_torchvision("alexnet")))
    lines = [line.rstrip() for line in text.splitlines()]
    assert lines[0] == "Title [1]"
    (first,) = (line.split() for line in lines if "features.0" in line)
    assert first == ["features.0", "Conv2d", "11×11/4", "64×55×55", "4", "11", "23,296", "140.6"]
    (last,) = (line.split() for line in lines if "classifier.6" in line)
    assert last == ["classifier.6", "Linear", "1000", "all", "all", "4,097,000", "8.2"]
    assert "61,100,840 parameters (61,100,840 trainable), 233.1 MiB" in lines
    assert any(line.startswith("1.43 GFLOP: 2 for each multiply-add") for line in lines)
    assert "MFLOP" in text and "region" not in text


def test_the_table_of_nothing():
    assert "0 parameters (0 trainable), 0.0 MiB\n0 FLOP" in printed(on_image(nn.Sequential()))


CONFIG = """\
model:
  name: {name}
  backbone: {{name: resnet, depth: 18, weights: IMAGENET1K_V1}}
data: {{short_side: [160, 200], long_side: 240, max_proposals: 20}}
"""


@pytest.fixture
def config(tmp_path):
    def write(name):
        path = tmp_path / "config.yaml"
        path.write_text(CONFIG.format(name=name))
        return str(path)

    return write


@pytest.fixture
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize("name", ["faster_rcnn", "fast_rcnn", "rcnn"])
def test_the_command(config, capsys, name):
    """Neither the weights that the config names nor data are there."""
    assert main(["model", config(name), "--classes", "3"]) == 0
    text = capsys.readouterr().out
    # 240 pixels of the long side at 4:3.
    assert "an image of 180 × 240, 3 classes" in text and "from region_head.pooling on: all regions together" in text
    assert ("20 regions" in text) == (name != "faster_rcnn")
    assert max(map(len, text.splitlines()[1:])) <= 100  # all but the title, with the config's path


@pytest.mark.usefixtures("wide")
def test_the_command_takes_options_and_overrides(config, capsys):
    words = ["--size", "64", "96", "--depth", "1", "--model.neck", "null"]
    assert main(["model", config("faster_rcnn"), *words]) == 0
    text = capsys.readouterr().out
    assert "an image of 64 × 96, 80 classes" in text
    assert [line.split()[0] for line in text.splitlines() if "  " in line][1:-1] == [
        *("backbone", "rpn", "region_head"),
    ]


@pytest.mark.usefixtures("wide")
def test_the_command_on_a_classifier(tmp_path, capsys):
    path = tmp_path / "config.yaml"
    path.write_text("model: {name: classifier, backbone: {name: alexnet}}\ndata: {size: 224}\n")
    assert main(["model", str(path)]) == 0
    text = capsys.readouterr().out
    assert "an image of 224 × 224, 1,000 classes\n" in text and "61,100,840 parameters" in text
    assert main(["model", str(path), "--size", "32", "32"]) == 2
    error = capsys.readouterr().err
    assert "--size: 32 × 32: too small for the network" in error and error.count("\n") == 1


@pytest.mark.usefixtures("wide")
def test_the_command_on_a_dense_classifier(capsys):
    """At 40 × 48 pixels LeNet's map has 3 × 5 cells, each of which sees 32 pixels."""
    words = ["--classes", "10", "--dense"]
    assert main(["model", "classify/lenet_digits", *words, "--size", "40", "48"]) == 0
    text = capsys.readouterr().out
    lines = [line.removeprefix("network").removeprefix(".").split() for line in text.splitlines()]
    found = {words[0].strip("."): words[1:] for words in lines if len(words) > 3}
    flops = 2 * 3 * 5 * 16 * 25 * 120 / 1e3
    assert found["classifier.0"] == ["Conv2d", "5×5", "120×3×5", "4", "32", "48,120", f"{flops:,.1f}"]
    assert found["average"] == ["MeanOverMap", "10", "all", "all"] and "61,706 parameters" in text
    assert main(["model", "classify/vgg16", *words]) == 0  # the short side of evaluation, at 4:3
    text = capsys.readouterr().out
    assert "an image of 256 × 341, 10 classes" in text and "10×2×4" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "config.yaml: model.backbone.name: choose"),
        (("--model.backbone.name", "resnet", "--dense"), "is a detector, which sees whole images anyway; leave it out"),
        (("--model.backbone.name", "resnet", "--size", "0", "9"), "--size: [0, 9]; give 1 or more"),
        (("--model.backbone.name", "resnet", "--classes", "0"), "--classes: 0; give 1 or more"),
        (("--model.backbone.name", "resnet", "--depth", "-1"), "--depth: -1; give 1 or more"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, capsys, words, message):
    path = tmp_path / "config.yaml"
    path.write_text("model: {name: faster_rcnn, backbone: {name: resnot}}\n")
    assert main(["model", str(path), *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_config_that_is_not_there(tmp_path, capsys):
    assert main(["model", str(tmp_path / "no.yaml")]) == 2
    assert "no.yaml" in capsys.readouterr().err


def test_no_name_is_broken_on_a_narrow_terminal():
    """The modules become a tree, in which every module is named once."""
    network = nn.Sequential()
    network.add_module("region_head", nn.Sequential())
    network.region_head.add_module("a_long_name_of_a_module", nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 6)))
    network.region_head.add_module("predictor", nn.Linear(6, 7))
    lines = {}
    for width in (100, 70):
        text = io.StringIO()
        print_summary(summarize(network, torch.empty(1, 4)), "title", Console(file=text, width=width))
        lines[width] = [line.split("  Linear")[0].rstrip() for line in text.getvalue().splitlines()]
    assert lines[100][3:6] == [
        "region_head.a_long_name_of_a_module.0",
        "region_head.a_long_name_of_a_module.1",
        "region_head.predictor",
    ]
    tree = [line.split(" Linear")[0].rstrip() for line in lines[70][3:7]]
    assert tree == ["region_head", "  a_long_name_of_a_module.0", "  a_long_name_of_a_module.1", "  predictor"]
