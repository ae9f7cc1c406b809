from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import box_iou

from detect.errors import UserError
from detect.models.matcher import match
from detect.models.rpn import RPN, ProposalCounts, RPNOptions, RPNOutput, _within
from detect.structures import Targets

CHANNELS = 8
STRIDES = [4, 8, 16, 32, 64]
SIZES = torch.tensor([[128, 192], [100, 150]])
HEIGHT, WIDTH = 128, 192
# More samples than anchors, so that the loss does not depend on a draw.
OPTIONS = RPNOptions(anchor_sizes=(16, 32, 64, 96, 128), batch_size_per_image=100_000, positive_fraction=0.5)


def make_rpn(options: RPNOptions = OPTIONS, strides: list[int] = STRIDES) -> RPN:
    rpn = RPN(CHANNELS, strides, options)
    for layer in (*rpn.convolutions, rpn.objectness, rpn.deltas):
        if hasattr(layer, "weight"):
            torch.nn.init.normal_(layer.weight, std=0.12)
            torch.nn.init.normal_(layer.bias, std=0.1)
    return rpn


def torchvisions(rpn: RPN) -> RegionProposalNetwork:
    options = rpn.options
    head = RPNHead(CHANNELS, rpn.anchors.per_cell, options.convolutions)
    head.load_state_dict(
        {
            **{
                f"conv.{i}.0.{kind}": getattr(rpn.convolutions[2 * i], kind)
                for i in range(options.convolutions)
                for kind in ("weight", "bias")
            },
            **{f"cls_logits.{kind}": getattr(rpn.objectness, kind) for kind in ("weight", "bias")},
            **{f"bbox_pred.{kind}": getattr(rpn.deltas, kind) for kind in ("weight", "bias")},
        }
    )
    counts = {"training": options.training, "testing": options.testing}
    return RegionProposalNetwork(
        AnchorGenerator(tuple((size,) for size in options.anchor_sizes), ((0.5, 1.0, 2.0),) * 5),
        head,
        options.positive_iou,
        options.negative_iou,
        options.batch_size_per_image,
        options.positive_fraction,
        {when: count.pre_nms_top_k for when, count in counts.items()},
        {when: count.post_nms_top_k for when, count in counts.items()},
        options.nms_threshold,
    )


def pyramid(images: int = 2, strides: list[int] = STRIDES) -> list[Tensor]:
    return [torch.randn(images, CHANNELS, -(-HEIGHT // s), -(-WIDTH // s)) for s in strides]


def random_targets(*counts: int, length: int | None = None) -> Targets:
    """Return `counts` ground truths, one count an image, padded to `length`."""
    length = max(counts) if length is None else length
    corner = torch.rand(len(counts), length, 2) * 60
    boxes = torch.cat([corner, corner + torch.rand(len(counts), length, 2) * 80 + 6], dim=-1)
    valid = torch.arange(length) < torch.tensor(counts)[:, None]
    labels = torch.zeros(valid.shape, dtype=torch.int64)
    return Targets(boxes, labels, valid, torch.zeros_like(valid))


def as_dicts(targets: Targets) -> list[dict[str, Tensor]]:
    return [
        {"boxes": b[v], "labels": t[v] + 1}
        for b, t, v in zip(targets.boxes, targets.labels, targets.valid, strict=True)
    ]


def image_list(sizes: Tensor = SIZES) -> ImageList:
    return ImageList(torch.zeros(len(sizes), 3, HEIGHT, WIDTH), [tuple(size) for size in sizes.tolist()])


@pytest.mark.parametrize("convolutions", [1, 2])
@pytest.mark.parametrize("counts", [(3, 5), (0, 4), (0, 0), (1, 1)])
def test_losses_are_torchvisions(counts, convolutions):
    rpn = make_rpn(replace(OPTIONS, convolutions=convolutions))
    features, targets = pyramid(), random_targets(*counts, length=6)
    losses = rpn.loss(rpn(features), SIZES, targets)
    _, expected = torchvisions(rpn)(image_list(), dict(enumerate(features)), as_dicts(targets))
    torch.testing.assert_close(losses["rpn_objectness"], expected["loss_objectness"])
    torch.testing.assert_close(losses["rpn_boxes"], expected["loss_rpn_box_reg"])
    assert (losses["rpn_boxes"] > 0) == (sum(counts) > 0)


@pytest.mark.parametrize("counts", [(1000, 1000), (60, 1000), (60, 25), (1, 1)])
def test_proposals_are_torchvisions(counts):
    counts = ProposalCounts(*counts)
    rpn = make_rpn(replace(OPTIONS, testing=counts))
    features = pyramid()
    proposals = rpn.propose(rpn(features), SIZES, counts)
    boxes, _ = torchvisions(rpn).eval()(image_list(), dict(enumerate(features)))
    for row, expected in enumerate(boxes):
        kept = proposals.valid[row]
        # As sets: torchvision sorts by sigmoids, where different logits may be the same float.
        same = (proposals.boxes[row, kept][:, None] - expected).abs().amax(dim=-1) < 1e-3
        assert same.shape[0] == same.shape[1] > 0 and same.any(dim=0).all() and same.any(dim=1).all()
        assert (proposals.scores[row, kept].diff() <= 0).all()
        assert not proposals.valid[row, int(kept.sum()) :].any()  # the valid ones stand first
        assert not proposals.scores[row, ~kept].any()


def test_proposals_lie_within_their_image_and_have_no_gradient():
    rpn = make_rpn()
    proposals = rpn.propose(rpn(pyramid()), SIZES, OPTIONS.testing)
    assert (proposals.boxes >= 0).all() and not proposals.boxes.requires_grad
    assert (proposals.boxes[..., 2:] <= SIZES.flip(-1)[:, None]).all()
    sides = proposals.boxes[..., 2:] - proposals.boxes[..., :2]
    assert (sides[proposals.valid] > 0).all()


def test_output_that_is_not_finite_proposes_nothing_invalid():
    rpn = make_rpn()
    output = rpn(pyramid())
    spoilt = output.deltas.detach().clone()
    spoilt[0] = torch.nan
    spoilt[1, ::2] = torch.inf
    proposals = rpn.propose(replace(output, deltas=spoilt), SIZES, OPTIONS.testing)
    assert not proposals.valid[0].any() and proposals.boxes.isfinite().all() and proposals.scores.isfinite().all()


def test_logits_and_anchors_share_their_order():
    """Each anchor's logit comes from the cell that it stands on."""
    rpn = RPN(CHANNELS, STRIDES, OPTIONS)
    features = pyramid(1)
    before = rpn(features).logits
    features[1][0, :, 5, 7] += 100
    changed = (rpn(features).logits - before).abs()[0] > 0
    anchors = rpn(features).anchors[changed]
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    # The 3×3 convolution reaches one cell to each side, and the three shapes of a cell are neighbours.
    assert len(anchors) == 27
    assert (centres - torch.tensor([7 * 8.0, 5 * 8])).abs().max() <= 8 + 0.5


def test_padding_and_order_of_ground_truths_change_nothing():
    rpn, features = make_rpn(), pyramid()
    output, targets = rpn(features), random_targets(3, 5)
    losses = rpn.loss(output, SIZES, targets)
    padding = torch.rand(2, 4, 4) * 100
    none = torch.zeros(2, 4, dtype=torch.bool)
    padded = Targets(
        torch.cat([targets.boxes, padding], dim=1),
        torch.cat([targets.labels, torch.zeros(2, 4, dtype=torch.int64)], dim=1),
        torch.cat([targets.valid, none], dim=1),
        torch.cat([targets.crowd, none], dim=1),
    )
    torch.testing.assert_close(rpn.loss(output, SIZES, padded), losses)
    order = torch.randperm(9)
    torch.testing.assert_close(rpn.loss(output, SIZES, padded._map(lambda value: value[:, order])), losses)


def test_order_of_images_changes_nothing():
    rpn, features, targets = make_rpn(), pyramid(), random_targets(3, 5)
    losses = rpn.loss(rpn(features), SIZES, targets)
    flipped = rpn.loss(
        rpn([level.flip(0) for level in features]), SIZES.flip(0), targets._map(lambda value: value.flip(0))
    )
    torch.testing.assert_close(flipped, losses)


def test_mirrored_images_have_the_same_loss():
    """This is exact if anchors stand in the middle of their cells."""
    rpn = make_rpn(replace(OPTIONS, anchor_sizes=(16, 32, 64), anchor_offset=0.5), [16])
    features, targets = pyramid(strides=[16]), random_targets(3, 5)
    output = rpn(features)

    def mirrored(values: Tensor) -> Tensor:
        return values.unflatten(1, (HEIGHT // 16, WIDTH // 16, 9)).flip(2).flatten(1, 3)

    deltas = mirrored(output.deltas) * torch.tensor([-1.0, 1, 1, 1])
    x1, y1, x2, y2 = targets.boxes.unbind(-1)
    boxes = torch.stack([WIDTH - x2, y1, WIDTH - x1, y2], dim=-1)
    losses = rpn.loss(
        RPNOutput(mirrored(output.logits), deltas, output.anchors, output.level_sizes),
        SIZES,
        replace(targets, boxes=boxes),
    )
    torch.testing.assert_close(losses, rpn.loss(output, SIZES, targets))


def test_anchors_across_the_border_are_not_trained_on():
    options = replace(OPTIONS, anchor_sizes=(16, 64), straddle_threshold=0.0)
    rpn = make_rpn(options, [16])
    output = rpn(pyramid(strides=[16]))
    targets = random_targets(3, 5)
    logits = output.logits.detach().requires_grad_()
    rpn.loss(replace(output, logits=logits), SIZES, targets)["rpn_objectness"].backward()
    x1, y1, x2, y2 = output.anchors.unbind(-1)
    for row, (height, width) in enumerate(SIZES.tolist()):
        inside = (x1 >= 0) & (y1 >= 0) & (x2 <= width) & (y2 <= height)
        assert inside.any() and not logits.grad[row, ~inside].any()


def test_crowds_are_not_trained_on():
    rpn = make_rpn()
    output = rpn(pyramid())
    crowd = torch.tensor([[0.0, 0, WIDTH, HEIGHT]]).expand(2, 1, 4)
    one = torch.ones(2, 1, dtype=torch.bool)
    losses = rpn.loss(output, SIZES, Targets(crowd, torch.zeros(2, 1, dtype=torch.int64), one, one))
    assert losses["rpn_boxes"] == 0
    inside = rpn.loss(output, SIZES, Targets(crowd, torch.zeros(2, 1, dtype=torch.int64), ~one, one))
    assert losses["rpn_objectness"] != inside["rpn_objectness"]


def test_as_many_anchor_sizes_as_levels_are_asked_for():
    with pytest.raises(UserError, match=r"^rpn\.anchor_sizes: 2 sizes for 5 levels; give one for each level$"):
        RPN(8, [4, 8, 16, 32, 64], RPNOptions(anchor_sizes=(32, 64)))


def test_a_ground_truth_at_the_border_has_an_anchor_within_it():
    rpn = make_rpn(replace(OPTIONS, straddle_threshold=0.0))
    sizes = torch.tensor([[HEIGHT, WIDTH]])
    ground_truths = torch.tensor([[[0.0, 0, 20, 90], [150, 40, 192, 60], [60, 100, 140, 128]]])
    valid = torch.ones(1, 3, dtype=torch.bool)
    targets = Targets(ground_truths, torch.zeros(1, 3, dtype=torch.int64), valid, ~valid)
    anchors = rpn(pyramid(1)).anchors
    within = _within(anchors, sizes, 0.0)
    iou = box_iou(anchors, ground_truths[0])
    best = iou.where(within[0, :, None], 0).amax(dim=0)
    assert (best < iou.amax(dim=0)).any()  # the best anchor of all reaches over the border
    _, labels = match(anchors[None], targets, rpn.matcher, within)
    for ground_truth in range(3):
        assert (labels[0][iou[:, ground_truth].isclose(best[ground_truth]) & within[0]] == 1).all()
    assert (labels[~within] == -1).all() and (labels == 0).any()
