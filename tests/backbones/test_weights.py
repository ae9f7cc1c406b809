import logging
import pickle
import sys
import zipfile
from collections import OrderedDict

import pytest
import torch
from torch import nn

from detect.backbones import GoogLeNetOptions, LeNetOptions, ResNetOptions, VGGOptions
from detect.backbones.weights import load_weights
from detect.errors import UserError
from detect.models import Classifier, ClassifierOptions


def network() -> nn.Sequential:
    """The smallest network with a body, a norm and a classifier."""
    layers = OrderedDict(conv=nn.Conv2d(3, 4, 1), bn=nn.BatchNorm2d(4), fc=nn.Linear(4, 10))
    return nn.Sequential(layers)


def load(path, target=None):
    load_weights(target or network(), str(path), "resnet18", ("fc.", "classifier.6."))


@pytest.fixture
def file(tmp_path):
    return tmp_path / "weights.pth"


@pytest.fixture
def checkpoints(tmp_path, monkeypatch):
    """torch.hub's folder, empty."""
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def test_a_file_fills_all_but_the_classifier(file):
    source, target = network(), network()
    old = target.fc.weight.clone()
    torch.save(source.state_dict(), file)
    load(file, target)
    torch.testing.assert_close(target.conv.weight, source.conv.weight)
    torch.testing.assert_close(target.fc.weight, old)


def test_a_classifier_of_other_classes_or_none_does_not_matter(file):
    state = {key: value for key, value in network().state_dict().items() if not key.startswith("fc.")}
    torch.save(state, file)
    load(file)
    torch.save(state | {"fc.weight": torch.ones(7, 7), "classifier.6.bias": torch.ones(3)}, file)
    load(file)


def test_half_precision_and_files_without_a_count_of_batches_load(file):
    source, target = network(), network()
    state = {key: value.half() for key, value in source.state_dict().items() if not key.endswith("num_batches_tracked")}
    torch.save(state, file)
    load(file, target)
    assert target.conv.weight.dtype == torch.float32
    torch.testing.assert_close(target.conv.weight, source.conv.weight.half().float())


@pytest.mark.parametrize("name", ["ResNet18_Weights.IMAGENET1K_V1", "IMAGENET1K_V1", "DEFAULT"])
def test_a_name_is_a_file_of_torch_hub(name, checkpoints):
    source = network()
    torch.save(source.state_dict(), checkpoints / "resnet18-f37072fd.pth")
    target = network()
    load(name, target)
    torch.testing.assert_close(target.conv.weight, source.conv.weight)


def test_a_name_without_its_file_says_what_to_fetch_and_where_to_put_it(checkpoints):
    path = checkpoints / "resnet18-f37072fd.pth"
    with pytest.raises(UserError) as caught:
        ResNetOptions(18, weights="IMAGENET1K_V1").build(multi_scale=False)
    assert f"download https://download.pytorch.org/models/{path.name} to {path}" in str(caught.value)


@pytest.mark.parametrize("name", ["", "IMAGENET1K_V9", "ResNet50_Weights.IMAGENET1K_V1", "weights.bin"])
def test_an_unknown_name_lists_the_known(name, checkpoints):
    with pytest.raises(
        UserError, match=r"give one of IMAGENET1K_V1, DEFAULT, or a \.pth, \.pt, \.safetensors, \.ckpt file"
    ):
        load(name)


def test_vgg_weights_without_fully_connected_layers_are_no_choice(checkpoints):
    with (
        torch.device("meta"),
        pytest.raises(UserError, match="IMAGENET1K_FEATURES: give one of IMAGENET1K_V1, DEFAULT,"),
    ):
        VGGOptions(weights="IMAGENET1K_FEATURES").build(multi_scale=False)


def test_group_norm_takes_no_weights_of_batch_norm(checkpoints, file):
    with torch.device("meta"), pytest.raises(UserError, match="set norm to frozen or batch"):
        ResNetOptions(18, norm="group", weights="IMAGENET1K_V1").build(multi_scale=False)
    torch.save(network().state_dict(), file)
    with pytest.raises(UserError, match=r"unexpected, 'bn\.running_mean' first; check depth and norm"):
        load(file, nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 4, 1), bn=nn.GroupNorm(2, 4))))


@pytest.mark.parametrize("norm", ["layer", "instance"])
def test_nor_do_layer_and_instance_norm(norm, checkpoints):
    for network in (ResNetOptions(18, norm=norm, weights="DEFAULT"), GoogLeNetOptions(norm=norm, weights="DEFAULT")):
        with torch.device("meta"), pytest.raises(UserError, match="DEFAULT are for batch norm; set norm to frozen"):
            network.build(multi_scale=False)


def test_a_missing_file(file):
    with pytest.raises(UserError, match="no such file"):
        load(file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.clear(), r"6 keys are missing, 'conv\.weight' first; check"),
        (lambda state: state.pop("bn.bias"), r"1 keys are missing, 'bn\.bias' first"),
        (lambda state: state.update(head=torch.ones(1)), r"1 keys are unexpected, 'head' first"),
        (lambda state: state.update({"conv.bias": torch.ones(5)}), r"conv\.bias is torch\.float32 \[5\], not \[4\]"),
        (lambda state: state.update({"conv.bias": torch.ones(4) * 1j}), r"conv\.bias is torch\.complex64"),
        (
            lambda state: state.update({"conv.bias": torch.full((4,), torch.nan)}),
            r"conv\.bias holds values that are not",
        ),
        (lambda state: state.update(epoch=3), "holds more than a state dict"),
        (lambda state: state.update(optimizer={"lr": torch.ones(1)}), "holds more than a state dict"),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(file, change, message):
    state = dict(network().state_dict())
    change(state)
    torch.save(state, file)
    target = network()
    before = {key: value.clone() for key, value in target.state_dict().items()}
    with pytest.raises(UserError, match=message) as caught:
        load(file, target)
    assert "\n" not in str(caught.value)
    torch.testing.assert_close(dict(target.state_dict()), before)


class Evil:
    def __reduce__(self):
        return print, ("unpickled",)


def test_bytes_that_are_no_weights_are_refused_in_one_line(file, capsys):
    torch.save(network().state_dict(), file)
    whole = file.read_bytes()
    torch.save(Evil(), file)
    evil = file.read_bytes()
    for content in (b"", b"no weights", whole[: len(whole) // 2], pickle.dumps(Evil()), evil):
        file.write_bytes(content)
        with pytest.raises(UserError, match="no readable weights") as caught:
            load(file)
        assert "\n" not in str(caught.value)
    assert "unpickled" not in capsys.readouterr().out


def test_a_compressed_archive_is_refused(tmp_path, file):
    torch.save(network().state_dict(), tmp_path / "whole.pth")
    with zipfile.ZipFile(tmp_path / "whole.pth") as whole, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as small:
        for name in whole.namelist():
            small.writestr(name, whole.read(name) + bytes(100_000))
    with pytest.raises(UserError, match="unpacks to more than its size"):
        load(file)


def test_safetensors_without_the_package_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    (tmp_path / "weights.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"pip install 'rcnn-family\[safetensors\]', or save"):
        load(tmp_path / "weights.safetensors")


# ---- checkpoints of classifiers --------------------------------------------------------------------------------------


def trained(network, folder, num_classes=3) -> tuple[nn.Module, str]:
    """Return a classifier's network, and a file like its checkpoint."""
    model = Classifier(num_classes, ClassifierOptions(backbone=network))
    for value in model.buffers():
        if value.is_floating_point():
            nn.init.uniform_(value, 0.5, 1.5)
    path = folder / "best.ckpt"
    torch.save({"state_dict": {f"model.{key}": value for key, value in model.state_dict().items()}, "epoch": 3}, path)
    return model.network, str(path)


def assert_equal(ours: nn.Module, theirs: nn.Module) -> None:
    one, other = ours.state_dict(), theirs.state_dict()
    other = {key: value for key, value in other.items() if key in one or not key.endswith("num_batches_tracked")}
    assert one.keys() == other.keys() and one
    assert all(torch.equal(value, other[key]) for key, value in one.items())


def test_a_detector_begins_with_a_classifiers_network(tmp_path):
    network, path = trained(LeNetOptions(), tmp_path)
    backbone, box_head = LeNetOptions(weights=path).build(multi_scale=False)
    assert_equal(nn.Sequential(*backbone.body.conv1, *backbone.body.conv2), network.features[:6])
    assert_equal(box_head.fc6, network.classifier[0])
    assert_equal(box_head.fc7, network.classifier[2])
    crop_network = LeNetOptions(weights=path).build_crop_network(32)
    assert_equal(crop_network.fully_connected, box_head)


@pytest.mark.parametrize("multi_scale", [True, False])
def test_a_resnets_statistics_come_along(tmp_path, multi_scale):
    network, path = trained(ResNetOptions(18, norm="batch"), tmp_path)
    backbone, box_head = ResNetOptions(18, norm="frozen", weights=path).build(multi_scale)
    stages = backbone.body
    assert_equal(stages["stem"].bn1, network.bn1)
    for name in ("layer1", "layer2", "layer3"):
        assert_equal(stages[name], getattr(network, name))
    assert_equal(stages["layer4"] if multi_scale else box_head.stage, network.layer4)


def test_another_classifier_takes_all_but_the_head(tmp_path):
    network, path = trained(LeNetOptions(), tmp_path, num_classes=3)
    for classes in (3, 7):
        ours = LeNetOptions(weights=path).network(classes)
        assert_equal(ours.features, network.features)
        assert_equal(ours.classifier[:4], network.classifier[:4])
        assert ours.classifier[4].weight.shape == (classes, 84)
        assert not torch.equal(ours.classifier[4].bias[:3], network.classifier[4].bias)


@pytest.mark.parametrize(
    "content",
    [
        {
            "state_dict": {
                "model.backbone.body.conv1.weight": torch.ones(1),
                "model.region_head.box_head.fc6.weight": torch.ones(1),
            }
        },
        {"state_dict": {}},
        {"conv.weight": torch.ones(1)},
        [1, 2],
    ],
    ids=["detector", "empty", "state dict", "list"],
)
def test_a_checkpoint_of_anything_else_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "best.ckpt")
    with pytest.raises(
        UserError, match=r"best\.ckpt: not a checkpoint of a classifier; give one, or a state"
    ) as caught:
        LeNetOptions(weights=str(tmp_path / "best.ckpt")).network(3)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    _, path = trained(LeNetOptions(), tmp_path)
    with torch.device("meta"), pytest.raises(UserError, match=r"best\.ckpt: does not fit resnet18: ") as caught:
        ResNetOptions(18, weights=path).build(multi_scale=False)
    assert str(caught.value).endswith("; check depth and norm") and "\n" not in str(caught.value)


def test_what_was_loaded_and_what_was_not_is_logged(tmp_path, caplog):
    caplog.set_level(logging.INFO, "detect")
    _, path = trained(LeNetOptions(), tmp_path)
    LeNetOptions(weights=path).network(10)
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [
        f"{path} → lenet",
        "  part        tensors  numbers",
        "  features          4    2,572  loaded",  # 156 + 2,416
        "  classifier        4   58,284  loaded",  # 48,120 + 10,164
        "  classifier        2      255  left out: classes of its training data",  # 84 · 3 + 3
    ]
