import sys

import pytest
import torch

from detect.backbones import FeatureInfo, Timm
from detect.errors import UserError
from detect.prediction.prepare import fold_norms

timm = pytest.importorskip("timm", reason="timm is an extra")
SMALL = "resnet10t"


@pytest.mark.parametrize("model", [SMALL, "hrnet_w18_small", "regnety_002", "convnext_atto", "mobilenetv3_small_050"])
@pytest.mark.parametrize("fpn", [True, False])
def test_channels_and_strides_are_true(model, fpn):
    with torch.device("meta"):
        backbone, trunk = Timm(model, fpn=fpn, fpn_channels=24).build()
        for images in (1, 2):
            maps = backbone(torch.empty(images, 3, 96, 160))
            expected = [
                (images, level.channels, -(-96 // level.stride), -(-160 // level.stride)) for level in backbone.features
            ]
            assert [tuple(features.shape) for features in maps] == expected
    assert trunk is None
    if fpn:
        assert backbone.features == tuple(FeatureInfo(24, stride) for stride in (4, 8, 16, 32, 64))
    else:
        assert [level.stride for level in backbone.features] == [16]


def test_weights_of_a_file_are_in_the_maps_and_the_classifiers_are_not(tmp_path):
    source = timm.create_model(SMALL, num_classes=7)
    for name, buffer in source.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_()
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    described = Timm(SMALL, fpn=False, weights=str(tmp_path / "weights.pth"))
    ours, _ = described.build()
    theirs = timm.create_model(SMALL, features_only=True)
    theirs.load_state_dict({key: source.state_dict()[key] for key in theirs.state_dict()})
    pixels = torch.randn(1, 3, 64, 96)
    torch.testing.assert_close(ours.eval()(pixels)[0], theirs.eval()(pixels)[3])

    whole, without = described.build_whole(64).eval(), source.eval()
    without.reset_classifier(0)
    crops = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(whole(crops), without(crops))
    assert whole.layers == {"pool5": 512}


def test_a_network_that_timm_puts_one_level_down_takes_its_weights_too(tmp_path):
    source = timm.create_model("convnext_atto", num_classes=7)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    ours, _ = Timm("convnext_atto", fpn=False, weights=str(tmp_path / "weights.pth")).build()
    pixels = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(ours.eval()(pixels)[0], source.eval().forward_intermediates(pixels)[1][2])


@pytest.mark.parametrize("model", [SMALL, "mobilenetv3_small_050"])
def test_what_does_not_learn_does_not_move(model):
    backbone, _ = Timm(model, fpn=False, train_stages=0).build()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    backbone.train()(torch.randn(2, 3, 64, 64) + 5)
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


def test_norms_with_an_activation_inside_are_not_folded_away():
    backbone, _ = Timm("mobilenetv3_small_050", fpn=False).build()
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = backbone.eval()(pixels)[0]
        fold_norms(backbone)
        assert torch.equal(backbone(pixels)[0], before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "resnet81"}, "timm has no network named 'resnet81'; did you mean resnet18"),
        ({"model": "vit_tiny_patch16_224"}, "takes squares of 224 pixels alone"),
        (
            {"model": SMALL, "weights": "c3_in1k"},
            r"download model.safetensors of https://huggingface.co/timm/resnet10t",
        ),
    ],
)
def test_what_cannot_be_built_says_why(options, message):
    with pytest.raises(UserError, match=message):
        Timm(**options).build()


def test_crops_are_refused_where_they_are_too_small():
    with pytest.raises(UserError, match="at least 32 pixels"):
        Timm(SMALL).build_whole(31)


def test_without_timm_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match="pip install timm"):
        Timm(SMALL).build()
