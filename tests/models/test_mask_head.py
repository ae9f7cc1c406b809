"""Mask R-CNN: mask targets, loss and masks of detections; the rest is Faster R-CNN's."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from detect.backbones import FPNOptions, ResNetOptions
from detect.models import (
    BoxHeadOptions,
    CascadeHeadOptions,
    CascadeRCNN,
    CascadeRCNNOptions,
    MaskHead,
    MaskHeadOptions,
    MaskRCNN,
    MaskRCNNOptions,
    ProposalCounts,
    RegionHeadOptions,
    RPNOptions,
)
from detect.models import mask_head as module
from detect.models.mask_head import mask_targets
from detect.structures import Batch, Detections, Images, Samples, Targets

CLASSES, SIDE = 3, 56
COUNTS = ProposalCounts(60, 30)
RPN = RPNOptions(anchor_sizes=(8, 16, 32, 64, 96), training=COUNTS, testing=COUNTS, batch_size_per_image=64)
COMMON = {
    "backbone": ResNetOptions(18, norm="batch", train_stages=5),
    "neck": FPNOptions(channels=16),
    "rpn": RPN,
    "box_head": BoxHeadOptions(channels=32),
    "masks": MaskHeadOptions(convolutions=2, channels=8),
}


def mask_rcnn(**changed) -> MaskRCNN:
    options = {**COMMON, "region_head": RegionHeadOptions(batch_size_per_image=16), **changed}
    return MaskRCNN(CLASSES, MaskRCNNOptions(**options))


def c4() -> MaskRCNN:
    rpn, masks = replace(RPN, anchor_sizes=(16, 32, 64)), MaskHeadOptions(convolutions=0, channels=8)
    return mask_rcnn(neck=None, rpn=rpn, masks=masks, box_head=BoxHeadOptions())


def cascade() -> CascadeRCNN:
    options = CascadeRCNNOptions(**COMMON, region_head=CascadeHeadOptions(batch_size_per_image=16))
    return CascadeRCNN(CLASSES, options)


KINDS = {"fpn": mask_rcnn, "c4": c4, "cascade": cascade}


def make_batch(*counts: int) -> Batch:
    """Return random images with `counts` objects, each with a random mask."""
    images, length = len(counts), max(*counts, 1)
    corner = torch.rand(images, length, 2) * 20
    boxes = torch.cat([corner, corner + torch.rand(images, length, 2) * 30 + 6], dim=-1)
    valid = torch.arange(length) < torch.tensor(counts)[:, None]
    masks = torch.randint(0, 256, (images, length, SIDE, SIDE), dtype=torch.uint8)
    labels = torch.randint(0, CLASSES, (images, length))
    return Batch(
        images=Images(torch.randint(0, 256, (images, 3, 64, 96), dtype=torch.uint8), torch.tensor([[64, 96]] * images)),
        targets=Targets(boxes, labels, valid, torch.zeros_like(valid), masks),
        ids=torch.arange(images),
        scales=torch.ones(images, 2),
    )


def total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


# ---- targets ---------------------------------------------------------------------------------------------------------


def left_half(box: list[float]) -> Targets:
    masks = torch.zeros(1, 1, SIDE, SIDE, dtype=torch.uint8)
    masks[..., : SIDE // 2] = 255
    one = torch.ones(1, 1, dtype=torch.bool)
    return Targets(torch.tensor([[box]]).float(), torch.zeros(1, 1, dtype=torch.int64), one, ~one, masks)


@pytest.mark.parametrize(
    ("box", "rows", "columns"),
    [
        ([10, 20, 30, 60], slice(None), slice(0, 14)),  # the ground truth's own box
        ([20, 20, 40, 60], slice(0, 0), slice(0, 0)),  # its right half, and beyond
        ([0, 20, 20, 60], slice(None), slice(14, 28)),  # half of it to the left of the object
        ([10, 40, 20, 80], slice(0, 14), slice(None)),  # half of it below the object
        ([100, 100, 120, 120], slice(0, 0), slice(0, 0)),
        ([0, 0, 40, 80], slice(7, 21), slice(7, 14)),  # around the object, twice as large
    ],
)
def test_targets_are_the_part_of_the_mask_in_the_box(box, rows, columns):
    targets = mask_targets(left_half([10, 20, 30, 60]), torch.zeros(1, 1).long(), torch.tensor([[box]]).float(), 28)
    expected = torch.zeros(28, 28, dtype=torch.bool)
    expected[rows, columns] = True
    assert torch.equal(targets[0, 0], expected)


def test_targets_belong_to_the_matched_ground_truth():
    targets = left_half([0, 0, 8, 8])
    both = Targets(
        targets.boxes.repeat(1, 2, 1),
        targets.labels.repeat(1, 2),
        targets.valid.repeat(1, 2),
        targets.crowd.repeat(1, 2),
        torch.cat([targets.masks, 255 - targets.masks], dim=1),
    )
    result = mask_targets(both, torch.tensor([[1, 0]]), both.boxes, 4)
    assert torch.equal(result[0, 0], ~result[0, 1]) and result[0, 1].sum() == 8


def test_targets_of_padding_are_finite():
    empty = replace(left_half([0, 0, 0, 0]), valid=torch.zeros(1, 1, dtype=torch.bool))
    assert mask_targets(empty, torch.zeros(1, 2).long(), torch.zeros(1, 2, 4), 28).shape == (1, 2, 28, 28)


# ---- loss ------------------------------------------------------------------------------------------------------------


class Constant(nn.Module):
    """Pooling that returns the same features for every region."""

    def forward(self, features, boxes):
        return torch.ones(boxes.shape[0] * boxes.shape[1], 4, 14, 14)


def constant_head(samples: int = 128) -> MaskHead:
    """Every cell has the logit of its class: -1, 0 and 2."""
    head = MaskHead(CLASSES, Constant(), 4, MaskHeadOptions(convolutions=0, channels=4, samples=samples))
    nn.init.zeros_(head.predictor.weight)
    head.predictor.bias.data = torch.tensor([-1.0, 0.0, 2.0])
    return head


def samples_of(targets: Targets, labels: list[int]) -> Samples:
    matched = torch.zeros(1, len(labels), dtype=torch.int64)
    boxes = targets.boxes.expand(1, len(labels), 4)
    return Samples(boxes, torch.tensor([labels]), matched, boxes, torch.ones(1, len(labels), dtype=torch.bool))


def test_the_loss_is_the_mean_over_the_objects_of_their_own_class():
    targets = left_half([0, 0, 8, 8])
    loss = constant_head().loss([], samples_of(targets, [0, 2, CLASSES]), targets)["masks"]
    logits = torch.tensor([-1.0, 2.0])
    expected = 0.5 * (nn.functional.softplus(-logits) + nn.functional.softplus(logits)).mean()
    torch.testing.assert_close(loss, expected)


def test_without_objects_the_loss_is_zero_and_has_a_gradient():
    head, targets = constant_head(), left_half([0, 0, 8, 8])
    loss = head.loss([], samples_of(targets, [CLASSES, CLASSES]), targets)["masks"]
    loss.backward()
    assert loss == 0 and not head.predictor.bias.grad.any()


def test_an_object_without_a_mask_does_not_count():
    targets = left_half([0, 0, 8, 8])
    unknown = replace(targets, masks=torch.zeros_like(targets.masks))
    assert constant_head().loss([], samples_of(unknown, [0, 1]), unknown)["masks"] == 0
    with pytest.raises(ValueError, match="needs the masks"):
        constant_head().loss([], samples_of(targets, [0]), replace(targets, masks=None))


def test_at_most_the_chosen_number_of_objects_counts():
    targets = left_half([0, 0, 8, 8])
    few = constant_head(samples=1).loss([], samples_of(targets, [0, 2]), targets)["masks"]
    assert few == constant_head().loss([], samples_of(targets, [0]), targets)["masks"]


@pytest.mark.parametrize("kind", KINDS)
def test_all_slots_give_the_same_loss_and_masks_as_the_used_ones(kind, monkeypatch):
    model, batch = KINDS[kind]().eval(), make_batch(3, 1)
    nn.init.normal_(model.mask_head.predictor.weight)
    results = []
    for length in (None, lambda valid, limit: min(limit, valid.shape[1])):
        if length is not None:
            monkeypatch.setattr(module, "_used_slots", length)
        torch.manual_seed(0)
        results.append((model.loss(batch)["masks"], model.detect(batch.images)))
    (loss, detections), (full_loss, full) = results
    torch.testing.assert_close(loss, full_loss)
    assert detections.masks.shape == full.masks.shape and detections.valid.any()
    torch.testing.assert_close(detections.masks[detections.valid], full.masks[full.valid])


# ---- model -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "side"), [("fpn", 28), ("c4", 14), ("cascade", 28)])
def test_nothing_depends_on_data_on_a_gpu(kind, side):
    """Meta tensors raise if their values are read, and take the code path of tensors on a GPU."""
    batch = make_batch(2, 3).to("meta")
    with torch.device("meta"):
        model = KINDS[kind]()
        total(model.loss(batch)).backward()
        detections = model.eval().detect(batch.images)
    assert detections.masks.shape == (*detections.valid.shape, side, side)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("unchecked")
def test_the_loss_compiles_as_one_graph(kind):
    model, batch, losses = KINDS[kind](), make_batch(2, 3), []
    for loss in (model.loss, torch.compile(model.loss, fullgraph=True, backend="aot_eager")):
        torch.manual_seed(0)
        losses.append(loss(batch))
    torch.testing.assert_close(*losses, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_gradient_reaches_the_mask_head(kind):
    model = KINDS[kind]()
    total(model.loss(make_batch(3, 3))).backward()
    assert [name for name, value in model.mask_head.named_parameters() if not value.grad.any()] == []


def test_masks_are_probabilities_of_the_detected_class():
    head = constant_head()
    boxes, valid = torch.rand(1, 4, 4), torch.tensor([[True, True, True, False]])
    detections = head.detect([], Detections(boxes, torch.rand(1, 4), torch.tensor([[2, 0, 1, 0]]), valid))
    expected = torch.tensor([2.0, -1.0, 0.0]).sigmoid()[:, None, None].expand(-1, 28, 28)
    torch.testing.assert_close(detections.masks[0, :3], expected)
    none = head.detect([], replace(detections, valid=torch.zeros_like(valid)))
    assert none.masks.shape == (1, 4, 28, 28)


def test_without_a_pyramid_both_heads_share_the_last_stage():
    model = c4()
    assert not [key for key in model.state_dict() if key.startswith("mask_head") and "stage" in key]
    before = model.mask_head([torch.ones(1, 256, 4, 6)], torch.tensor([[[0.0, 0, 32, 32]]]), torch.zeros(1, 1).long())
    for parameter in model.region_head.box_head.parameters():
        nn.init.zeros_(parameter)
    after = model.mask_head([torch.ones(1, 256, 4, 6)], torch.tensor([[[0.0, 0, 32, 32]]]), torch.zeros(1, 1).long())
    assert before.any() and not after.any()


def test_the_paper_s_head_and_its_initial_values():
    """He et al. 2017, figure 4: four convolutions and a deconvolution of 256 channels, 2.64 M parameters with COCO."""
    head = MaskHead(80, nn.Identity(), 256, MaskHeadOptions())
    assert sum(parameter.numel() for parameter in head.parameters()) == 2_643_280
    assert not head.predictor.bias.any() and head.predictor.weight.std().item() == pytest.approx(1e-3, rel=0.05)
    with_norm = MaskHead(80, nn.Identity(), 256, MaskHeadOptions(norm="batch"))
    assert [type(layer) for layer in with_norm.convolutions[:3]] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]
    assert with_norm.convolutions[0].bias is None
