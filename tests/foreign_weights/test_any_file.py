"""The program that wrote a file of weights is recognised by the file's content."""

import sys
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import resnet18
from torchvision.models.detection import (
    fasterrcnn_mobilenet_v3_large_fpn,
    fcos_resnet50_fpn,
    retinanet_resnet50_fpn,
    ssd300_vgg16,
)

from detect.errors import UserError
from detect.foreign_weights.any_file import read_weights
from detect.foreign_weights.coco_names import COCO_NAMES


def test_detectron2_is_recognised_in_any_wrapping(detectron2_resnet18, tmp_path):
    state = detectron2_resnet18(classes=80)
    average = {f"module.{key}": value + 1 for key, value in state.items()}
    torch.save({"model": state, "ema_state": average, "iteration": 3}, tmp_path / "model.pth")
    weights = read_weights(tmp_path / "model.pth")
    assert weights.checkpoint.classes == tuple(COCO_NAMES.values())
    key = "proposal_generator.rpn_head.conv.bias"
    assert torch.equal(weights.checkpoint.model.rpn.convolutions[0].bias.detach(), state[key] + 1)
    assert weights.notes == (f"{tmp_path / 'model.pth'}: {weights.notes[0].partition(': ')[2]}",)
    assert "--style torchvision" in weights.notes[0]


def test_unknown_names_of_classes_are_told(detectron2_resnet18, tmp_path):
    torch.save(detectron2_resnet18(classes=3), tmp_path / "model.pth")
    notes = read_weights(tmp_path / "model.pth").notes
    assert notes[-1].startswith(f"{tmp_path / 'model.pth'}: the file has no class names") and "--names" in notes[-1]


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_network_of_torchvision_is_a_backbone(suffix, tmp_path):
    path = tmp_path / f"resnet18{suffix}"
    (torch.save if suffix == ".pth" else save_file)(resnet18().state_dict(), path)
    weights = read_weights(path)
    assert (weights.path, weights.checkpoint, weights.notes) == (path, None, ())


def made(network, **options):
    with torch.device("meta"):
        state = network(weights=None, weights_backbone=None, num_classes=4, **options).state_dict()
    return {key: torch.zeros(value.shape) for key, value in state.items()}


OTHERS = {
    "a torchvision Faster R-CNN on MobileNetV3, which is no backbone here": lambda: made(
        fasterrcnn_mobilenet_v3_large_fpn
    ),
    "a RetinaNet, FCOS or SSD of torchvision": lambda: made(retinanet_resnet50_fpn),
    "a RetinaNet, FCOS or SSD of torchvision ": lambda: made(fcos_resnet50_fpn),
    "a RetinaNet, FCOS or SSD of torchvision  ": lambda: made(ssd300_vgg16),
    "a detector of MMDetection": lambda: {"backbone.conv1.weight": torch.zeros(1), "roi_head.x": torch.zeros(1)},
    "a detector of MMDetection ": lambda: {  # its YOLOX
        "backbone.stem.conv.conv.weight": torch.zeros(1),
        "bbox_head.multi_level_conv_cls.0.bias": torch.zeros(1),
    },
    "a YOLO of Ultralytics, which is no YOLOX": lambda: {"model.0.conv.weight": torch.zeros(1)},
    "a DETR": lambda: {"transformer.encoder.layers.0.norm1.bias": torch.zeros(1)},
    "an ImageNet backbone of detectron2": lambda: {"stem.conv1.weight": torch.zeros(1), "res2.0.x": torch.zeros(1)},
    "an ImageNet backbone of Caffe2": lambda: {"conv1_w": torch.zeros(1)},
    "a detector of detect without its config and classes": lambda: {"region_head.x": torch.zeros(1)},
}


@pytest.mark.parametrize("network", OTHERS)
def test_other_networks_are_named_with_a_remedy(network, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": OTHERS[network]()}, path)
    with pytest.raises(UserError) as caught:
        read_weights(path)
    assert str(caught.value) == (
        f"{path}: this is {network.strip()}; give a checkpoint of detect, a Faster or Mask R-CNN of torchvision or "
        "detectron2, a Cascade R-CNN of detectron2, or a YOLOX; detect weights list names published ones"
    )


def test_files_that_are_no_weights_are_refused(tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    last.touch()
    (tmp_path / "a.onnx").touch()
    torch.save(resnet18().state_dict(), tmp_path / "a.bin")
    torch.save({"epoch": 3}, tmp_path / "a.pth")
    for path, message in (
        (tmp_path / "none.ckpt", "none.ckpt: No such file or directory; give a checkpoint such as RUN/"),
        (tmp_path / "run", f"run: Is a directory; give a checkpoint such as {last}"),
        (tmp_path / "a.onnx", "a.onnx: an exported program; give the checkpoint from which it was exported"),
        (tmp_path / "a.bin", "a.bin: a backbone is read from .pth, .pt, .safetensors, .ckpt; save its state dict as"),
        (tmp_path / "a.pth", "a.pth: 'epoch' is not a dense tensor; give a file with only a state dict"),
        (last, "last.ckpt: unreadable weights (EOFError); give a file with only a state dict"),
    ):
        with pytest.raises(UserError) as caught:
            read_weights(path)
        assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("<!DOCTYPE html><html></html>", "a web page"),
        ("version https://git-lfs.github.com/spec/v1", "a pointer of Git LFS"),
    ],
)
def test_a_download_that_is_not_the_file(tmp_path, text, kind):
    file = tmp_path / "model.pth"
    file.write_text(text)
    with pytest.raises(UserError, match=rf"model\.pth: {kind}, not the weights themselves; download the file again$"):
        read_weights(file)


def test_a_model_of_ultralytics_is_named(tmp_path, monkeypatch):
    """Its files hold the network as code, not as a state dict."""
    module = ModuleType("ultralytics.nn")
    module.Model = type("Model", (), {"__module__": "ultralytics.nn"})
    monkeypatch.setitem(sys.modules, "ultralytics", ModuleType("ultralytics"))
    monkeypatch.setitem(sys.modules, "ultralytics.nn", module)
    torch.save({"model": module.Model()}, tmp_path / "yolo.pt")
    with pytest.raises(UserError, match=r"yolo\.pt: a YOLO of Ultralytics, which is no YOLOX; give a file of YOLOX"):
        read_weights(tmp_path / "yolo.pt")
