import pytest
import torch
from torch import nn
from torch.nn import functional as F

from detect.ops import winograd
from detect.ops.winograd import (
    TrainableWinogradConv2d,
    WinogradConv2d,
    is_winograd,
    train_with_winograd,
    transform_weight,
)


def convolution(channels_in: int = 64, channels_out: int = 64, **options) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, **({"kernel_size": 3, "padding": 1} | options)).requires_grad_(False)


@pytest.mark.parametrize(
    ("batch", "height", "width"), [(1, 1, 1), (1, 4, 4), (1, 5, 3), (2, 8, 12), (1, 2, 17), (3, 13, 7)]
)
def test_equals_the_sum_in_float64(batch, height, width):
    conv = convolution(8, 12)
    x = torch.randn(batch, 8, height, width)
    expected = F.conv2d(x.double(), conv.weight.double(), conv.bias.double(), padding=1)
    result = WinogradConv2d.of(conv)(x)
    assert result.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(result.double(), expected, atol=2e-5, rtol=0)


def test_integers_are_exact():
    # With weights that are multiples of 576 = 24², G g Gᵀ and all other intermediate values are integers.
    conv = convolution(4, 3, bias=False)
    conv.weight.copy_(torch.randint(-3, 4, conv.weight.shape) * 576.0)
    x = torch.randint(-9, 10, (1, 4, 9, 10)).float()
    assert torch.equal(WinogradConv2d.of(conv)(x), conv(x))


def test_more_tiles_than_fit_in_one_product(monkeypatch):
    conv, x = convolution(4, 4), torch.randn(2, 4, 20, 24)
    whole = WinogradConv2d.of(conv)(x)
    monkeypatch.setattr(winograd, "TILES_PER_PRODUCT", 7)
    torch.testing.assert_close(WinogradConv2d.of(conv)(x), whole, atol=1e-5, rtol=0)


def test_equal_for_both_memory_formats_and_any_number_of_threads():
    conv, x = WinogradConv2d.of(convolution(16, 8)), torch.randn(2, 16, 11, 9)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = conv(x)
        torch.set_num_threads(3)
        assert torch.equal(conv(x.to(memory_format=torch.channels_last)), one)
    finally:
        torch.set_num_threads(before)


def test_an_image_has_the_same_result_in_any_batch():
    conv, x = WinogradConv2d.of(convolution(16, 8)), torch.randn(3, 16, 30, 22)
    assert torch.equal(conv(x)[1:2], conv(x[1:2])) and torch.equal(conv(x[[2, 0]])[0], conv(x)[2])


def test_shape_and_memory_format_of_fake_tensors():
    with torch._subclasses.FakeTensorMode():
        conv = WinogradConv2d(torch.empty(36, 5, 7), torch.empty(7))
        result = conv(torch.empty(2, 5, 6, 9))
        assert result.shape == (2, 7, 6, 9) and result.is_contiguous(memory_format=torch.channels_last)


def test_transform_of_a_kernel_with_one_nonzero_weight():
    # g is 1 at its centre: the result is the second column of G times itself.
    g = torch.zeros(1, 1, 3, 3)
    g[0, 0, 1, 1] = 1
    column = torch.tensor([0, -1 / 6, 1 / 6, 1 / 12, -1 / 12, 0])
    torch.testing.assert_close(transform_weight(g).reshape(6, 6), column[:, None] * column)


def test_supported_convolutions():
    assert is_winograd(convolution()) and is_winograd(convolution(bias=False))
    for other in (
        convolution(stride=2),
        convolution(padding=0),
        convolution(dilation=2, padding=2),
        convolution(kernel_size=1, padding=0),
        convolution(groups=2),
        convolution(padding_mode="reflect"),
        convolution(32),
        convolution().to(torch.bfloat16),
        convolution(device="meta"),
    ):
        assert not is_winograd(other)


def trainable(channels_in: int = 64, channels_out: int = 64, **options) -> TrainableWinogradConv2d:
    conv = nn.Conv2d(channels_in, channels_out, **({"kernel_size": 3, "padding": 1} | options))
    TrainableWinogradConv2d.convert(conv)
    assert isinstance(conv, TrainableWinogradConv2d)
    return conv


@pytest.fixture
def small_maps_allowed(monkeypatch):
    monkeypatch.setattr(winograd, "MIN_TILES_TRAINING", 1)


@pytest.mark.usefixtures("small_maps_allowed")
@pytest.mark.parametrize(("batch", "height", "width"), [(1, 1, 1), (1, 5, 3), (2, 8, 12), (3, 13, 7)])
@pytest.mark.parametrize("bias", [True, False])
def test_gradients(batch, height, width, bias):
    conv = trainable(5, 7, bias=bias)
    exact = nn.Conv2d(5, 7, 3, padding=1, bias=bias).double()
    exact.load_state_dict(conv.state_dict())
    x = torch.randn(batch, 5, height, width)
    gradient = torch.randn(batch, 7, height, width)
    inputs = x.clone().requires_grad_(), x.double().requires_grad_()
    outputs = [layer(one) for layer, one in zip((conv, exact), inputs, strict=True)]
    outputs[0].backward(gradient)
    outputs[1].backward(gradient.double())
    pairs = [outputs, [one.grad for one in inputs]]
    pairs += [[one.grad for one in both] for both in zip(conv.parameters(), exact.parameters(), strict=True)]
    for result, expected in pairs:
        error = (result.double() - expected).abs().max()
        assert error <= 3e-5 * expected.square().mean().sqrt()


@pytest.mark.usefixtures("small_maps_allowed")
def test_gradients_of_integers_are_exact():
    conv = trainable(4, 3, bias=False)
    with torch.no_grad():
        conv.weight.copy_(torch.randint(-3, 4, conv.weight.shape) * 576.0)
    x = torch.randint(-9, 10, (2, 4, 9, 10)).float().requires_grad_()
    y = conv(x)
    (gx,) = torch.autograd.grad(y, x, torch.ones_like(y))
    (expected,) = torch.autograd.grad(F.conv2d(x, conv.weight, padding=1), x, torch.ones_like(y))
    assert torch.equal(gx, expected)


@pytest.mark.usefixtures("small_maps_allowed")
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_operator_passes_opcheck(layout):
    x = torch.randn(2, 5, 6, 9).to(memory_format=layout).requires_grad_()
    weight = torch.randn(7, 5, 3, 3, requires_grad=True)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(winograd._convolution_cpu, (x, weight), test_utils=checks)


@pytest.mark.usefixtures("small_maps_allowed")
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_keeps_the_memory_format(layout):
    conv, x = trainable(8, 16), torch.randn(2, 8, 9, 10).to(memory_format=layout).requires_grad_()
    y = conv(x)
    y.sum().backward()
    assert y.is_contiguous(memory_format=layout) and x.grad.is_contiguous(memory_format=layout)


@pytest.mark.usefixtures("small_maps_allowed")
def test_only_requested_gradients_are_computed():
    conv, x = trainable(8, 8), torch.randn(1, 8, 9, 10)
    conv(x).sum().backward()
    assert x.grad is None and conv.weight.grad is not None
    conv.requires_grad_(False)
    x.requires_grad_()
    conv(x).sum().backward()
    assert x.grad is not None


def test_falls_back_to_the_plain_convolution():
    conv = trainable(8, 8)
    small = torch.randn(1, 8, 9, 10)
    assert torch.equal(conv(small), F.conv2d(small, conv.weight, conv.bias, padding=1))  # too few tiles
    large = torch.randn(1, 8, 40, 40)
    with torch.autocast("cpu", torch.bfloat16):
        assert conv(large).dtype == torch.bfloat16
    assert conv.double()(large.double()).dtype == torch.float64


def test_convolutions_that_are_converted_for_training():
    layers = nn.Sequential(nn.Conv2d(128, 128, 3, padding=1), nn.Conv2d(64, 128, 3, padding=1), nn.Conv2d(128, 128, 1))
    names, weights = list(layers.state_dict()), list(layers.parameters())
    train_with_winograd(layers)
    assert [type(layer) for layer in layers] == [TrainableWinogradConv2d, nn.Conv2d, nn.Conv2d]
    assert list(layers.state_dict()) == names
    assert all(now is before for now, before in zip(layers.parameters(), weights, strict=True))
