import pickle
import sys
import zipfile
from collections import OrderedDict

import pytest
import torch
from torch import nn

from detect.backbones import VGG, ResNet
from detect.backbones.weights import load_weights
from detect.errors import UserError


def network() -> nn.Sequential:
    """As small as a network can be that has a body, a norm and a classifier."""
    layers = OrderedDict(conv=nn.Conv2d(3, 4, 1), bn=nn.BatchNorm2d(4), fc=nn.Linear(4, 10))
    return nn.Sequential(layers)


def load(path, target=None):
    load_weights(target or network(), str(path), "resnet18", ("fc.", "classifier.6."))


@pytest.fixture
def file(tmp_path):
    return tmp_path / "weights.pth"


@pytest.fixture
def checkpoints(tmp_path, monkeypatch):
    """torch.hub's folder, as yet without a file."""
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
        ResNet(18, weights="IMAGENET1K_V1").build()
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
        VGG(weights="IMAGENET1K_FEATURES").build()


def test_group_norm_takes_no_weights_of_batch_norm(checkpoints, file):
    with torch.device("meta"), pytest.raises(UserError, match="set norm to frozen or batch"):
        ResNet(18, norm="group", weights="IMAGENET1K_V1").build()
    torch.save(network().state_dict(), file)
    with pytest.raises(UserError, match=r"unexpected, 'bn\.running_mean' first; check depth and norm"):
        load(file, nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 4, 1), bn=nn.GroupNorm(2, 4))))


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
    with pytest.raises(UserError, match="pip install safetensors"):
        load(tmp_path / "weights.safetensors")
