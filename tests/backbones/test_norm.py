import copy

import pytest
import torch
from torch import nn
from torchvision.ops.misc import FrozenBatchNorm2d as TorchvisionFrozenBatchNorm2d

from detect.backbones.norm import FrozenBatchNorm2d, freeze, norm_layer, replace_norms


def randomise(norm: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    state = {key: torch.rand(8, generator=generator) + 0.5 for key in ("weight", "bias", "running_mean", "running_var")}
    norm.load_state_dict(state)
    return norm


def test_frozen_norm_by_hand():
    norm = FrozenBatchNorm2d(1, eps=0.0)
    values = {"weight": 3.0, "bias": 1.0, "running_mean": 2.0, "running_var": 4.0}
    norm.load_state_dict({key: torch.tensor([value]) for key, value in values.items()})
    assert norm(torch.full((1, 1, 1, 1), 6.0)).item() == (6 - 2) / 2 * 3 + 1


@pytest.mark.parametrize("images", [0, 1, 3])
@pytest.mark.parametrize("eps", [0.0, 1e-5, 1e-3])
def test_frozen_norm_is_torchvisions_with_and_without_gradient(images, eps):
    ours, theirs = randomise(FrozenBatchNorm2d(8, eps)), randomise(TorchvisionFrozenBatchNorm2d(8, eps))
    x = torch.randn(images, 8, 5, 4, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(ours(x), theirs(x))

    mine, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    torch.testing.assert_close(ours(mine), theirs(other))
    ours(mine).square().sum().backward()
    theirs(other).square().sum().backward()
    torch.testing.assert_close(mine.grad, other.grad)


@pytest.mark.parametrize("gradient", [False, True])
def test_frozen_norm_keeps_dtype_and_memory_format(gradient):
    x = torch.randn(2, 8, 5, 4).bfloat16().to(memory_format=torch.channels_last).requires_grad_(gradient)
    y = randomise(FrozenBatchNorm2d(8))(x)
    assert y.dtype == torch.bfloat16
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_frozen_norm_keeps_nothing_for_the_backward_pass_but_its_scale():
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor.numel()), lambda _: None):
        FrozenBatchNorm2d(8)(torch.randn(2, 8, 5, 4, requires_grad=True))
    assert saved == [8]


def rescale(norm):
    norm.weight.mul_(3)
    return norm


def change_eps(norm):
    norm.eps = 0.5
    return norm


def replace_a_buffer(norm):
    norm.running_mean = norm.running_mean + 1
    return norm


def load_another(norm):
    norm.load_state_dict(FrozenBatchNorm2d(3).state_dict())
    return norm


@pytest.mark.parametrize(
    "change",
    [rescale, change_eps, replace_a_buffer, load_another, lambda norm: norm.double(), lambda norm: norm.half()],
)
@pytest.mark.parametrize("copied", [False, True])
def test_the_scale_that_frozen_norm_keeps_follows_its_buffers(change, copied):
    norm = FrozenBatchNorm2d(3)
    for name, buffer in norm.named_buffers():
        buffer.copy_(torch.tensor([0.5, 1.0, 1.5]) + len(name))
    x = torch.randn(1, 3, 2, 2, requires_grad=True)
    assert norm.affine(x.dtype)[0] is norm.affine(x.dtype)[0]
    changed = change(copy.deepcopy(norm) if copied else norm)
    fresh = FrozenBatchNorm2d(3, changed.eps).to(changed.weight.dtype)
    fresh.load_state_dict(changed.state_dict())
    assert torch.equal(changed(x), fresh(x))


def test_frozen_norm_and_batch_norm_load_each_other():
    frozen = randomise(FrozenBatchNorm2d(8))
    batch = nn.BatchNorm2d(8).eval()
    batch.load_state_dict(frozen.state_dict())
    x = torch.randn(2, 8, 5, 4)
    torch.testing.assert_close(batch(x), frozen(x))

    again = FrozenBatchNorm2d(8)
    again.load_state_dict(batch.state_dict())
    torch.testing.assert_close(again(x), frozen(x))


def test_freeze_makes_a_constant_that_training_mode_does_not_thaw():
    batch = randomise(nn.BatchNorm2d(8, eps=0.1)).eval()
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sequential(batch))
    x = torch.randn(2, 3, 7, 6)
    expected = module(x)

    freeze(module)
    module.train()
    torch.testing.assert_close(module(x), expected)
    assert isinstance(module[1][0], FrozenBatchNorm2d)
    assert not any(parameter.requires_grad for parameter in module.parameters())


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("frozen", FrozenBatchNorm2d),
        ("batch", nn.BatchNorm2d),
        ("sync", nn.SyncBatchNorm),
        ("group", nn.GroupNorm),
        ("layer", nn.GroupNorm),
        ("instance", nn.InstanceNorm2d),
        ("none", nn.Identity),
    ],
)
def test_norm_layers(name, kind):
    norm = norm_layer(name)(64)
    assert type(norm) is kind
    # A scale and a shift a channel; frozen ones are no parameters.
    values = norm.state_dict()
    assert name == "none" or values["weight"].shape == values["bias"].shape == (64,)
    assert len(list(norm.parameters())) == (0 if name in ("frozen", "none") else 2)


@pytest.mark.parametrize(("channels", "groups"), [(64, 32), (32, 32), (48, 16), (208, 16), (24, 8), (7, 1)])
def test_groups_divide_the_channels(channels, groups):
    norm, x = norm_layer("group")(channels), torch.randn(2, channels, 3, 5)
    assert (norm.num_groups, norm.num_channels) == (groups, channels)
    values = norm(x).view(2, groups, -1)
    torch.testing.assert_close(values.mean(dim=2), torch.zeros(2, groups), atol=1e-5, rtol=0)
    torch.testing.assert_close(values.var(dim=2, correction=0), torch.ones(2, groups), atol=1e-3, rtol=0)


@pytest.mark.parametrize("images", [0, 1, 3])
def test_layer_norm_is_torchs_over_channels_and_cells(images):
    """But that the scale and the shift are of channels, not of cells."""
    norm, x = norm_layer("layer")(6), torch.randn(images, 6, 4, 5)
    nn.init.uniform_(norm.weight), nn.init.uniform_(norm.bias)
    expected = nn.LayerNorm((6, 4, 5), elementwise_affine=False)(x)
    torch.testing.assert_close(norm(x), expected * norm.weight[:, None, None] + norm.bias[:, None, None])


def test_instance_norm_is_that_of_each_channel_in_training_and_in_evaluation():
    norm, x = norm_layer("instance")(6), torch.randn(2, 6, 4, 5)
    expected = (x - x.mean((2, 3), True)) / (x.var((2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
    for mode in (True, False):
        torch.testing.assert_close(norm.train(mode)(x), expected)


def test_synchronised_norm_of_one_process_is_batch_norm():
    x = torch.randn(4, 8, 3, 3)
    norms = norm_layer("sync")(8), norm_layer("batch")(8)
    for mode in (True, False):
        ours, theirs = (norm.train(mode)(x) for norm in norms)
        torch.testing.assert_close(ours, theirs)


def nested(eps: float) -> tuple[nn.Sequential, nn.BatchNorm2d]:
    batch = randomise(nn.BatchNorm2d(8, eps)).eval()
    return nn.Sequential(nn.Conv2d(3, 8, 1), nn.Sequential(batch)).eval(), batch


@pytest.mark.parametrize("norm", ["frozen", "sync", "batch"])
def test_replaced_norms_keep_what_was_learned_and_their_epsilon(norm):
    network, batch = nested(eps=0.1)
    x = torch.randn(2, 3, 4, 5)
    expected = network(x)
    replace_norms(network, norm)
    assert type(network[1][0]) is type(norm_layer(norm)(8)) and network[1][0].eps == 0.1
    assert (network[1][0] is batch) == (norm == "batch")
    torch.testing.assert_close(network.eval()(x), expected)


@pytest.mark.parametrize("norm", ["group", "layer", "instance", "none"])
def test_other_norms_begin_anew(norm):
    network, _ = nested(eps=0.1)
    replace_norms(network, norm)
    made = network[1][0]
    assert type(made) is type(norm_layer(norm)(8))
    assert norm == "none" or ((made.weight == 1).all() and not made.bias.any())


def test_only_the_chosen_norms_are_replaced():
    network, batch = nested(eps=0.1)
    network.append(nn.BatchNorm2d(8))
    replace_norms(network, "frozen", {batch})
    assert isinstance(network[1][0], FrozenBatchNorm2d) and isinstance(network[2], nn.BatchNorm2d)


@pytest.mark.parametrize("gradient", [False, True])
def test_a_frozen_norm_keeps_the_activation_that_timms_norms_include(gradient):
    layers = pytest.importorskip("timm.layers", reason="timm is an extra")
    norm = randomise(layers.BatchNormAct2d(8, act_layer=nn.ReLU6)).eval()
    network = nn.Sequential(norm)
    x = (4 * torch.randn(2, 8, 5, 4, generator=torch.Generator().manual_seed(1))).requires_grad_(gradient)
    expected = norm(x)
    assert expected.min() == 0 and expected.max() == 6

    replace_norms(network, "group")
    assert network[0] is norm
    replace_norms(network, "frozen")
    torch.testing.assert_close(network.train()(x), expected)
    assert not list(network.parameters())
