"""Networks as classifiers: their parameters, which of them are trained, and the loss."""

from dataclasses import replace
from math import exp, log

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F

from detect.backbones import (
    AlexNetOptions,
    BackboneOptions,
    GoogLeNetOptions,
    LeNetOptions,
    ResNetOptions,
    VGGMOptions,
    VGGOptions,
)
from detect.backbones.norm import FrozenBatchNorm2d
from detect.errors import UserError
from detect.models import Classifier, ClassifierOptions
from detect.structures import ClassificationBatch

CLASSES = 3


def make_batch(images: int = 2, size: int = 64) -> ClassificationBatch:
    pixels = torch.randint(0, 256, (images, 3, size, size), dtype=torch.uint8)
    return ClassificationBatch(pixels, torch.arange(images) % CLASSES, torch.arange(images))


def classifier(network: BackboneOptions, classes: int = CLASSES, **options) -> Classifier:
    return Classifier(classes, ClassifierOptions(backbone=network, **options))


def name_of(network: BackboneOptions | int) -> str:
    return network.architecture() if isinstance(network, BackboneOptions) else ""


def total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


# ---- parameters ------------------------------------------------------------------------------------------------------


def count(model: nn.Module, without: str = " ") -> int:
    return sum(one.numel() for name, one in model.named_parameters() if without not in name)


@pytest.mark.parametrize(
    ("network", "parameters"),
    [
        (AlexNetOptions(), 61_100_840),
        (VGGOptions(11), 132_863_336),
        (VGGOptions(13), 133_047_848),
        (VGGOptions(16), 138_357_544),
        (VGGOptions(19), 143_667_240),
        (VGGOptions("A-LRN"), 132_863_336),
        (VGGOptions("C"), 133_638_952),
        (ResNetOptions(18, norm="batch"), 11_689_512),
        (ResNetOptions(34, norm="batch"), 21_797_672),
        (ResNetOptions(50, norm="batch"), 25_557_032),
        (ResNetOptions(101, norm="batch"), 44_549_160),
        (ResNetOptions(152, norm="batch"), 60_192_808),
    ],
    ids=name_of,
)
def test_parameters_are_as_many_as_published(network, parameters):
    with torch.device("meta"):
        assert count(classifier(network, classes=1000)) == parameters


def test_lenet_and_googlenet_are_as_large_as_published():
    with torch.device("meta"):
        assert count(classifier(LeNetOptions(), classes=10)) == 61_706
        googlenet = classifier(GoogLeNetOptions(norm="batch"), classes=1000)
        assert (count(googlenet, without="aux"), count(googlenet)) == (6_624_904, 13_004_888)


# ---- trained layers --------------------------------------------------------------------------------------------------


def trained_layers(network: BackboneOptions, trainable: str) -> tuple[Classifier, set[str]]:
    """Return a classifier, and the layers whose parameters all have a gradient after a loss."""
    with torch.device("meta"):
        model = classifier(network, trainable=trainable)
        total(model.loss(make_batch())).backward()
    layers: dict[str, set[bool]] = {}
    for name, one in model.network.named_parameters():
        assert (one.grad is not None) == one.requires_grad
        layers.setdefault(name.rpartition(".")[0], set()).add(one.requires_grad)
    assert all(len(values) == 1 for values in layers.values())
    return model, {
        name for name, (is_trained,) in ((name, tuple(values)) for name, values in layers.items()) if is_trained
    }


@pytest.mark.parametrize(
    ("network", "head", "stages"),
    [
        (LeNetOptions(train_stages=1), {"classifier.4"}, {"features.4", "classifier.0", "classifier.2"}),
        (LeNetOptions(train_stages=0), {"classifier.4"}, {"classifier.0", "classifier.2"}),
        (
            AlexNetOptions(train_stages=2),
            {"classifier.6"},
            {"features.8", "features.10", "classifier.1", "classifier.4"},
        ),
        (VGGMOptions(train_stages=1), {"classifier.6"}, {"features.12", "classifier.0", "classifier.3"}),
        (
            VGGOptions(11, norm="batch", train_stages=1),
            {"classifier.6"},
            {f"features.{place}" for place in (22, 23, 25, 26)} | {"classifier.0", "classifier.3"},
        ),
    ],
    ids=["lenet", "lenet0", "alexnet", "vgg_m", "vgg11"],
)
def test_the_head_or_the_last_stages_learn(network, head, stages):
    assert trained_layers(network, "head")[1] == head
    assert trained_layers(network, "stages")[1] == head | stages
    model, everything = trained_layers(network, "all")
    assert everything == {name.rpartition(".")[0] for name, _ in model.network.named_parameters()} > head | stages


@pytest.mark.parametrize(
    ("network", "head", "stages"),
    [
        (ResNetOptions(18, norm="batch", train_stages=2), {"fc"}, {"layer3", "layer4"}),
        (
            ResNetOptions(18, norm="batch", train_stages=5),
            {"fc"},
            {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4"},
        ),
        (GoogLeNetOptions(norm="batch", train_stages=1), {"fc", "aux1", "aux2"}, {"inception5a", "inception5b"}),
    ],
    ids=["resnet18", "resnet18 whole", "googlenet"],
)
def test_the_networks_own_norms_are_frozen(network, head, stages):
    for trainable, expected in (("head", head), ("stages", head | stages)):
        model, layers = trained_layers(network, trainable)
        assert {name.partition(".")[0] for name in layers} == expected
        for name, layer in model.network.named_modules():
            if isinstance(layer, FrozenBatchNorm2d | nn.BatchNorm2d):
                learning = name.partition(".")[0] in expected
                assert isinstance(layer, nn.BatchNorm2d) == learning, name


def test_statistics_of_what_is_frozen_do_not_move_in_training():
    model = classifier(ResNetOptions(18, norm="batch", train_stages=1), trainable="stages").train()
    before = {name: value.clone() for name, value in model.network.named_buffers()}
    model.loss(make_batch(size=32))
    moved = {
        name.partition(".")[0] for name, value in model.network.named_buffers() if not torch.equal(value, before[name])
    }
    assert moved == {"layer4"}


def test_more_stages_than_there_are_cannot_learn():
    with pytest.raises(UserError, match=r"^train_stages: 3: the network has 2 stages; give 0 … 2$"):
        classifier(LeNetOptions(train_stages=3), trainable="stages")


@pytest.mark.parametrize("network", [VGGOptions(11), VGGMOptions(), AlexNetOptions(), GoogLeNetOptions()], ids=name_of)
def test_dropout_reaches_every_dropout_layer(network):
    with torch.device("meta"):
        models = [classifier(network, dropout=dropout) for dropout in (None, 0.0, 0.25)]
    shares = [[layer.p for layer in model.modules() if isinstance(layer, nn.Dropout)] for model in models]
    own = [0.7, 0.7, 0.2] if isinstance(network, GoogLeNetOptions) else [0.5, 0.5]
    assert shares == [own, [0.0] * len(own), [0.25] * len(own)]


# ---- logits and losses -----------------------------------------------------------------------------------------------


class Constant(nn.Module):
    """A network that returns these logits for any input."""

    def __init__(self, *logits: float) -> None:
        super().__init__()
        self.logits = torch.tensor(logits)

    def forward(self, pixels: Tensor) -> Tensor:
        self.pixels = pixels
        return self.logits.expand(len(pixels), -1)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_loss_by_hand(smoothing):
    """Labels 0 and 1 where the logits are 2, 0, 0; smoothing spreads its share over all three classes."""
    model = classifier(LeNetOptions(), label_smoothing=smoothing)
    model.network = Constant(2.0, 0.0, 0.0)
    nothing = log(exp(2) + 2)
    by_class = (nothing - 2, nothing, nothing)
    expected = sum((1 - smoothing) * by_class[label] + smoothing * sum(by_class) / 3 for label in (0, 1)) / 2
    losses = model.loss(make_batch(2))
    assert losses.keys() == {"classification"}
    assert losses["classification"].item() == pytest.approx(expected, rel=1e-6)


def test_pixels_are_normalised_by_the_network_s_own_numbers():
    images = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 32, 32)
    for network, black, white in (
        (LeNetOptions(), -1.0, 1.0),
        (ResNetOptions(18), -0.485 / 0.229, (1 - 0.485) / 0.229),
    ):
        with FakeTensorMode():
            shape = classifier(network)(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).shape
        assert shape == (2, CLASSES)
        model = classifier(LeNetOptions())
        model.mean, model.std = torch.tensor(network.mean), torch.tensor(network.std)
        model.network = Constant(0.0, 0.0, 0.0)
        model(images)
        red = model.network.pixels[:, 0]
        torch.testing.assert_close(red, torch.tensor([black, white])[:, None, None].expand_as(red))


def test_a_dense_classifier_has_the_logits_of_the_crops():
    """The map of 40 × 36 pixels has 3 × 2 cells."""
    model, batch = classifier(LeNetOptions()).eval(), make_batch(2, size=40)
    images = batch.images[..., :36]
    with torch.no_grad():
        crops = [model(images[..., y : y + 32, x : x + 32]) for y in (0, 4, 8) for x in (0, 4)]
        torch.testing.assert_close(model.to_dense(32)(images), torch.stack(crops).mean(dim=0), atol=1e-5, rtol=0)


@pytest.mark.parametrize("images", [0, 1, 3])
def test_every_image_has_its_logits(images):
    model = classifier(LeNetOptions()).eval()
    batch = make_batch(images, size=32)
    logits = model(batch.images)
    assert logits.shape == (images, CLASSES)
    for row, image in enumerate(batch.images):
        torch.testing.assert_close(model(image[None])[0], logits[row])
    assert torch.equal(logits, model.to_memory_format(torch.contiguous_format)(batch.images)) or images


def test_defaults_are_those_of_a_resnet_trained_as_a_whole():
    with torch.device("meta"):
        model = Classifier(CLASSES)
    assert model.options == ClassifierOptions(
        backbone=ResNetOptions(50),
        trainable="all",
        dropout=None,
        label_smoothing=0.0,
        loss_weights=(1.0, 0.3, 0.3),
    )
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_googlenets_losses_are_one_and_twice_three_tenths():
    model = classifier(GoogLeNetOptions(initialization="he"), dropout=0.0).train()
    batch = make_batch()
    outputs = model.network((batch.images - 127.5) / 127.5)
    three = [F.cross_entropy(one, batch.labels) for one in (outputs.logits, outputs.aux_logits1, outputs.aux_logits2)]
    assert len({round(one.item(), 4) for one in three}) == 3
    losses = model.loss(batch)
    expected = dict(zip(("classification", "auxiliary1", "auxiliary2"), three, strict=True))
    torch.testing.assert_close(
        losses, {name: weight * expected[name] for name, weight in zip(losses, (1, 0.3, 0.3), strict=True)}
    )
    model.options = replace(model.options, loss_weights=(2.0, 0.5, 0.0))
    weights = {"classification": 2.0, "auxiliary1": 0.5, "auxiliary2": 0.0}
    losses = model.loss(batch)
    torch.testing.assert_close(losses, {name: weights[name] * expected[name] for name in losses})

    losses = model.eval().loss(batch)
    torch.testing.assert_close(losses, {"classification": 2.0 * three[0]})
    torch.testing.assert_close(model(batch.images), outputs.logits)


def test_mixed_precision_has_losses_and_logits_in_float32():
    model, batch = classifier(LeNetOptions()), make_batch(size=32)
    expected = model.loss(batch)
    with torch.autocast("cpu", torch.bfloat16):
        losses, logits = model.loss(batch), model(batch.images)
    assert losses["classification"].dtype == logits.dtype == torch.float32
    torch.testing.assert_close(losses, expected, rtol=0.05, atol=0)


# ---- nothing depends on the data -------------------------------------------------------------------------------------

NETWORKS = {
    "lenet": LeNetOptions(),
    "alexnet": AlexNetOptions(),
    "vgg_m": VGGMOptions(),
    "vgg11": VGGOptions(11),
    "vgg_a_lrn": VGGOptions("A-LRN"),
    "vgg_c": VGGOptions("C"),
    "googlenet": GoogLeNetOptions(initialization="he"),  # torchvision's own draws again until it likes a number
    "resnet18": ResNetOptions(18),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_nothing_depends_on_data(name):
    with FakeTensorMode():
        model, batch = classifier(NETWORKS[name]), make_batch()
        losses = model.loss(batch)
        total(losses).backward()
        logits = model.eval()(batch.images)
    assert len(losses) == (3 if name == "googlenet" else 1)
    assert all(loss.shape == () for loss in losses.values())
    assert logits.shape == (2, CLASSES)


@pytest.mark.parametrize("norm", ["frozen", "batch", "sync", "group", "layer", "instance", "none"])
@pytest.mark.parametrize("network", [VGGOptions, GoogLeNetOptions, ResNetOptions])
def test_each_norm_takes_a_step(network, norm):
    options = {} if network is GoogLeNetOptions else {"depth": 11 if network is VGGOptions else 18}
    with torch.device("meta"):
        model = classifier(network(norm=norm, **options))
        total(model.loss(make_batch())).backward()
    kinds = {type(layer).__name__ for layer in model.modules() if "Norm" in type(layer).__name__}
    expected = {
        **{"frozen": {"FrozenBatchNorm2d"}, "batch": {"BatchNorm2d"}, "sync": {"SyncBatchNorm"}, "none": set()},
        **{"group": {"GroupNorm"}, "layer": {"GroupNorm"}, "instance": {"InstanceNorm2d"}},
    }
    assert kinds == expected[norm]
    assert all(one.grad is not None for one in model.parameters())


@pytest.mark.usefixtures("unchecked")
def test_dense_logits_compile_as_one_graph():
    model, batch = classifier(LeNetOptions()).eval(), make_batch(2, size=40)
    assert model.to_dense(32) is model
    with torch.no_grad():
        expected, compiled = model(batch.images), torch.compile(model, fullgraph=True, backend="eager")(batch.images)
    torch.testing.assert_close(compiled, expected)


@pytest.mark.usefixtures("unchecked")
def test_loss_compiles_as_one_graph():
    model, batch = classifier(LeNetOptions(), label_smoothing=0.1), make_batch(4, size=32)
    results = []
    for loss in (model.loss, torch.compile(model.loss, fullgraph=True, backend="aot_eager")):
        model.zero_grad()
        losses = loss(batch)
        total(losses).backward()
        results.append((losses, {name: value.grad for name, value in model.named_parameters()}))
    torch.testing.assert_close(results[0], results[1], atol=1e-4, rtol=1e-3)


# ---- learning --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trainable", ["all", "head"])
def test_steps_lower_the_loss_and_leave_what_is_frozen(trainable):
    model, batch = classifier(LeNetOptions(), trainable=trainable), make_batch(6, size=32)
    batch.images.copy_((batch.labels * 127)[:, None, None, None])  # black, grey and white
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimizer = torch.optim.SGD([one for one in model.parameters() if one.requires_grad], lr=0.1)
    first = total(model.loss(batch)).item()
    for _ in range(20):
        optimizer.zero_grad()
        total(model.loss(batch)).backward()
        optimizer.step()
    assert total(model.loss(batch)).item() < 0.95 * first
    moved = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    head = {"network.classifier.4.weight", "network.classifier.4.bias"}
    assert moved == (head if trainable == "head" else before.keys())
