import pytest
import torch
from torch import Tensor, nn

from detect.backbones import BoxHead, ResNetOptions, VGGOptions
from detect.backbones.fully_connected import FullyConnectedBoxHead
from detect.errors import UserError
from detect.models import FasterRCNN, FastRCNN
from detect.models.box_head import BoxHeadOptions, ConvFCBoxHead
from detect.models.low_rank import factorize, truncate


def voc_head() -> FullyConnectedBoxHead:
    """fc6 of 10 × 18 weights, fc7 of 12 × 10."""
    return FullyConnectedBoxHead(nn.Linear(2 * 3 * 3, 10), nn.Linear(10, 12), pooled=3).eval()


def pyramid_head() -> ConvFCBoxHead:
    """layers.0 of 8 × 18 weights, layers.1 and layers.2 of 8 × 8."""
    return ConvFCBoxHead(2, 3, BoxHeadOptions(convolutions=1, layers=3, channels=8)).eval()


HEADS = {"voc": voc_head, "pyramid": pyramid_head}


def as_one(box_head: BoxHead, name: str) -> Tensor:
    """The weights of the one layer that two stand for."""
    state = box_head.state_dict()
    return state[f"{name}.1.weight"] @ state[f"{name}.0.weight"]


@pytest.mark.parametrize(("kind", "ranks"), [("voc", (10, 10)), ("voc", (10,)), ("pyramid", (8, 8)), ("pyramid", ())])
@pytest.mark.parametrize("regions", [0, 1, 5])
def test_at_full_rank_nothing_changes(kind, ranks, regions):
    box_head, pooled = HEADS[kind](), torch.randn(regions, 2, 3, 3)
    before = box_head(pooled)
    truncate(box_head, ranks)
    torch.testing.assert_close(box_head(pooled), before, atol=1e-4, rtol=0)


def test_the_largest_singular_value_stays_by_hand():
    """diag(3, 2) with biases: 3 stays, 2 goes; Σ Vᵀ is ±(3, 0), U is ±(1, 0)."""
    fc6, fc7 = nn.Linear(2, 2), nn.Linear(2, 2)
    fc6.weight.data.copy_(torch.diag(torch.tensor([3.0, 2.0])))
    fc6.bias.data.copy_(torch.tensor([0.25, 0.5]))
    box_head = FullyConnectedBoxHead(fc6, fc7, pooled=1)
    truncate(box_head, [1])
    first, second = box_head.fc6
    assert first.bias is None and first.weight.abs().tolist() == [[3, 0]] and second.weight.abs().tolist() == [[1], [0]]
    assert second.bias.tolist() == [0.25, 0.5]
    assert box_head.fc6(torch.tensor([[1.0, 1.0]])).tolist() == [[3.25, 0.5]]
    assert box_head.fc7 is fc7


@pytest.mark.parametrize("rank", [1, 4, 9])
def test_what_is_lost_is_the_smallest_singular_values(rank):
    """No matrix of that rank is nearer: |W - W'|² is the sum of the squares of those left out (Eckart and Young)."""
    box_head = voc_head()
    before = box_head.fc6.weight.detach().double()
    truncate(box_head, [rank])
    lost = (as_one(box_head, "fc6").double() - before).square().sum()
    torch.testing.assert_close(lost, torch.linalg.svdvals(before)[rank:].square().sum(), atol=1e-6, rtol=0)


def test_a_layer_of_that_rank_is_kept_as_it_is():
    box_head = voc_head()
    box_head.fc6.weight.data.copy_(torch.randn(10, 3) @ torch.randn(3, 18))
    pooled = torch.randn(4, 2, 3, 3)
    before = box_head(pooled)
    truncate(box_head, [3])
    torch.testing.assert_close(box_head(pooled), before, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", HEADS)
def test_the_untrained_layers_have_the_shapes_of_the_truncated_ones(kind):
    one, other = HEADS[kind](), HEADS[kind]()
    factorize(one, (3, 2))
    truncate(other, (3, 2))
    one.load_state_dict(other.state_dict())
    pooled = torch.randn(2, 2, 3, 3)
    assert torch.equal(one(pooled), other(pooled))


def test_parameters_are_those_of_the_paper():
    """t(u + v) and the biases."""
    box_head = voc_head()
    factorize(box_head, (3, 2))
    assert sum(parameter.numel() for parameter in box_head.parameters()) == 3 * (10 + 18) + 10 + 2 * (12 + 10) + 12


@pytest.mark.parametrize(
    ("kind", "ranks", "message"),
    [
        ("voc", (11,), r"^svd: 11: fc6 has 10 × 18 weights; give a rank of 1 … 10$"),
        ("voc", (2, 11), r"^svd: 11: fc7 has 12 × 10 weights"),
        ("voc", (0,), r"^svd: 0: fc6 has .*1 … 10$"),
        ("voc", (-1,), r"^svd: -1: fc6"),
        ("pyramid", (2, 9), r"^svd: 9: layers\.1 has 8 × 8 weights; give a rank of 1 … 8$"),
        (
            "voc",
            (2, 2, 2),
            r"^svd: 3 ranks, but the box head has 2 fully connected layers; give one rank for each layer to compress",
        ),
    ],
)
@pytest.mark.parametrize("change", [factorize, truncate])
def test_ranks_that_there_are_not_are_refused(kind, ranks, message, change):
    with pytest.raises(UserError, match=message) as caught:
        change(HEADS[kind](), ranks)
    assert "\n" not in str(caught.value)


def test_a_box_head_of_convolutions_has_no_ranks():
    _, box_head = ResNetOptions(18, norm="batch").build(multi_scale=False)
    factorize(box_head, ())
    with pytest.raises(UserError, match=r"^svd: 1 ranks, but the box head has 0 fully connected layers"):
        factorize(box_head, (4,))


@pytest.mark.parametrize("model", [FastRCNN, FasterRCNN])
def test_detectors_have_the_ranks_of_their_options(model):
    ranks = (16, 8)
    with torch.device("meta"):
        box_head = model(3, model.Options(backbone=ResNetOptions(18), svd=ranks)).region_head.box_head
    assert [tuple(layer.weight.shape) for layer in box_head.modules() if isinstance(layer, nn.Linear)] == [
        *((16, 256 * 49), (1024, 16)),
        *((8, 1024), (1024, 8)),
    ]


@pytest.mark.parametrize("model", [FastRCNN, FasterRCNN])
def test_pretrained_weights_are_not_loaded_into_untrained_factors(model):
    backbone = ResNetOptions(18, weights="IMAGENET1K_V1")
    message = r"^svd: only a trained box head can be truncated; train without svd, then run detect compress$"
    with torch.device("meta"), pytest.raises(UserError, match=message):
        model(3, model.Options(backbone=backbone, svd=(4,)))


def test_it_is_a_layer_of_vgg_that_becomes_smaller():
    with torch.device("meta"):
        _, box_head = VGGOptions(16).build(multi_scale=False)
        factorize(box_head, (1024, 256))
    assert [tuple(value.shape) for value in box_head.state_dict().values()] == [
        *((1024, 25088), (4096, 1024), (4096,)),
        *((256, 4096), (4096, 256), (4096,)),
    ]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("kind", HEADS)
def test_it_still_compiles_as_one_graph(kind):
    box_head, pooled = HEADS[kind](), torch.randn(3, 2, 3, 3)
    factorize(box_head, (3, 2))
    compiled = torch.compile(box_head, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(pooled), box_head(pooled))
