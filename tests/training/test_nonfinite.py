import pytest
import torch
from torch import nn

from detect.training.nonfinite import first_nonfinite


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Sequential(nn.Linear(2, 3), nn.ReLU(inplace=True)), nn.Linear(3, 1)

    def forward(self, x):
        return self.last(self.first(x))


@pytest.fixture
def net():
    return Net()


def place(net, x, loss=lambda y: y.sum()):
    with torch.enable_grad():
        return first_nonfinite(net, lambda: {"one": loss(net(x)), "other": net.last.weight.sum()})


def test_weights_come_first(net):
    with torch.no_grad():
        net.last.bias[0] = torch.nan
    assert place(net, torch.full((4, 2), torch.inf)) == "the weights last.bias"


def test_then_the_first_output(net):
    assert place(net, torch.full((4, 2), torch.inf)) == "the output of first.0"


def test_then_losses(net):
    assert place(net, torch.ones(4, 2), lambda y: y.sum() / 0) == "the loss one"


def test_then_gradients_from_the_last_layer_on(net):
    root = lambda y: (y * 0).sum().sqrt()  # noqa: E731  0, with the gradient inf · 0
    assert place(net, torch.ones(4, 2), root) == "the gradient at the output of last"


def test_a_gradient_of_weights_alone(net):
    x = torch.ones(4, 2)
    assert place(net, x, lambda y: (net.first[0].weight * 0).sum().sqrt()) == "the gradient of first.0.weight"


def test_nothing_is_wrong_and_no_hook_stays(net):
    assert place(net, torch.ones(4, 2)).startswith("another process, or not reproduced")
    assert not any(layer._forward_hooks for layer in net.modules())
