import pytest
import torch
from torch import nn
from torchvision.ops.misc import FrozenBatchNorm2d as TorchvisionFrozenBatchNorm2d

from detect.backbones.norm import FrozenBatchNorm2d, freeze, norm_layer


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


def test_norm_layers():
    assert isinstance(norm_layer("frozen")(64), FrozenBatchNorm2d)
    assert isinstance(norm_layer("batch")(64), nn.BatchNorm2d)
    group = norm_layer("group")(64)
    assert isinstance(group, nn.GroupNorm)
    assert (group.num_groups, group.num_channels) == (32, 64)
