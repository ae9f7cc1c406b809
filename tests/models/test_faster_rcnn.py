"""Faster R-CNN: nothing depends on the data's values, and everything that should not matter does not."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.ops import MultiScaleRoIAlign, box_iou

from detect.backbones import FPNOptions, ResNetOptions, VGGOptions
from detect.models import (
    BoxHeadOptions,
    FasterRCNN,
    FasterRCNNOptions,
    PoolingOptions,
    PostprocessOptions,
    ProposalCounts,
    RegionHeadOptions,
    RPNOptions,
)
from detect.models.box_coder import BoxCoder
from detect.models.matcher import Matcher
from detect.models.sampler import Sampler
from detect.structures import Batch, Images, Targets

CLASSES = 3
HEIGHT, WIDTH = 64, 96
COUNTS = ProposalCounts(60, 30)
PYRAMID = RPNOptions(anchor_sizes=(8, 16, 32, 64, 96), training=COUNTS, testing=COUNTS, batch_size_per_image=64)
ONE_MAP = replace(PYRAMID, anchor_sizes=(16, 32, 64))
REGION_HEAD = RegionHeadOptions(batch_size_per_image=16)
BOX_HEAD = BoxHeadOptions(channels=32)


def fpn(**options) -> FasterRCNN:
    options = {"rpn": PYRAMID, "region_head": REGION_HEAD, "box_head": BOX_HEAD} | options
    return FasterRCNN(CLASSES, FasterRCNNOptions(backbone=ResNetOptions(18, norm="batch"), **options))


def p3_to_p7() -> FasterRCNN:
    return fpn(neck=FPNOptions(channels=64, first_level=3))


def c4() -> FasterRCNN:
    backbone = ResNetOptions(18, norm="batch")
    options = FasterRCNNOptions(backbone=backbone, neck=None, rpn=ONE_MAP, region_head=REGION_HEAD)
    return FasterRCNN(CLASSES, options)


def vgg() -> FasterRCNN:
    pooling, region_head = PoolingOptions(kind="pool"), replace(REGION_HEAD, class_agnostic=True)
    options = FasterRCNNOptions(
        backbone=VGGOptions(11), neck=None, rpn=ONE_MAP, pooling=pooling, region_head=region_head
    )
    return FasterRCNN(CLASSES, options)


KINDS = {"fpn": fpn, "p3": p3_to_p7, "c4": c4, "vgg": vgg}


@pytest.fixture(scope="module", params=KINDS)
def model(request) -> FasterRCNN:
    torch.manual_seed(0)
    return livened(KINDS[request.param]())


@pytest.fixture(scope="module")
def pyramid() -> FasterRCNN:
    """In eval mode, with more samples than regions, so that no loss depends on a draw."""
    torch.manual_seed(0)
    rpn = replace(PYRAMID, batch_size_per_image=100_000)
    return livened(fpn(rpn=rpn, region_head=replace(REGION_HEAD, batch_size_per_image=1000))).eval()


@torch.no_grad()
def livened(model: FasterRCNN) -> FasterRCNN:
    """Scores and boxes of an untrained network hardly differ: here they do."""
    model.rpn.objectness.weight.normal_(std=0.1)
    model.rpn.deltas.weight.normal_(std=0.02)
    predictor = model.region_head.predictor
    predictor.scores.weight.normal_(std=0.3)
    predictor.deltas.weight.normal_(std=0.1)
    predictor.scores.weight[-1] = 0  # so that not all is background
    return model


def make_batch(*counts: int, length: int | None = None) -> Batch:
    """Return images of different sizes with `counts` ground truths, padded to `length`."""
    images, length = len(counts), max(*counts, 1) if length is None else length
    sizes = torch.tensor([[HEIGHT, WIDTH], [50, 70], [33, 96]])[:images]
    corner = torch.rand(images, length, 2) * 20
    boxes = torch.cat([corner, corner + torch.rand(images, length, 2) * 30 + 6], dim=-1)
    valid = torch.arange(length) < torch.tensor(counts)[:, None]
    return Batch(
        images=Images(torch.randint(0, 256, (images, 3, HEIGHT, WIDTH), dtype=torch.uint8), sizes),
        targets=Targets(boxes, torch.randint(0, CLASSES, (images, length)), valid, torch.zeros_like(valid)),
        ids=torch.arange(images),
        scales=torch.ones(images, 2),
    )


def total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


LOSSES = {"rpn_objectness", "rpn_boxes", "classification", "boxes"}


def test_defaults_are_those_of_a_feature_pyramid():
    """Ren et al. 2015, §3.1.2 and §3.1.3; Lin et al. 2017, §4 and §5.2; detections as in torchvision and detectron2."""
    with torch.device("meta"):
        model = FasterRCNN(CLASSES)
    assert model.options == FasterRCNNOptions(
        name="faster_rcnn",
        backbone=ResNetOptions(50, norm="frozen", train_stages=3, last_stage=5),
        neck=FPNOptions(channels=256, first_level=2, norm=None),
        rpn=RPNOptions(
            anchor_sizes=(32, 64, 128, 256, 512),
            anchor_ratios=(0.5, 1.0, 2.0),
            anchor_offset=0.0,
            anchors_rounded=True,
            anchors_fitted=False,
            convolutions=1,
            training=ProposalCounts(pre_nms_top_k=2000, post_nms_top_k=2000),
            testing=ProposalCounts(pre_nms_top_k=1000, post_nms_top_k=1000),
            nms_threshold=0.7,
            min_size=1e-3,
            positive_iou=0.7,
            negative_iou=0.3,
            batch_size_per_image=256,
            positive_fraction=0.5,
            straddle_threshold=None,
            smooth_l1_beta=1 / 9,
        ),
        pooling=PoolingOptions(kind="align", sampling_ratio=2, aligned=False),
        box_head=BoxHeadOptions(convolutions=0, layers=2, channels=1024),
        region_head=RegionHeadOptions(
            batch_size_per_image=512,
            positive_fraction=0.25,
            positive_iou=0.5,
            negative_iou=0.5,
            negative_iou_min=0.0,
            class_agnostic=False,
            delta_weights=(10.0, 10.0, 5.0, 5.0),
            smooth_l1_beta=1 / 9,
        ),
        postprocess=PostprocessOptions(
            score_threshold=0.05, nms_threshold=0.5, max_detections=100, pre_nms_top_k=4096, min_size=0.01
        ),
        svd=(),
    )
    rpn, head = model.rpn, model.region_head
    assert FasterRCNNOptions.proposals == "own" and FasterRCNNOptions.recipes == ("joint", "alternating")
    assert rpn.matcher == Matcher(0.7, 0.3, best_is_positive=True, negative_iou_min=0.0)
    assert rpn.sampler == Sampler(256, 0.5) and rpn.box_coder == BoxCoder((1.0, 1.0, 1.0, 1.0))
    assert rpn.anchors.strides == (4, 8, 16, 32, 64) and rpn.anchors.per_cell == 3
    assert head.matcher == Matcher(0.5, 0.5, best_is_positive=False, negative_iou_min=0.0)
    assert head.sampler == Sampler(512, 0.25)
    assert head.box_coder == BoxCoder((10.0, 10.0, 5.0, 5.0)) and head.statistics is None
    assert head.smooth_l1_beta == 1 / 9 and model.postprocessing == model.options.postprocess
    assert head.predictor.deltas.out_features == 4 * CLASSES and head.predictor.scores.out_features == CLASSES + 1
    assert (head.box_head.pooled, head.box_head.channels_in, head.box_head.channels) == (7, 256, 1024)


def test_counts_that_are_given_in_part_keep_their_own_defaults():
    options = RPNOptions(training={"post_nms_top_k": 50}, testing={"pre_nms_top_k": 60})
    assert options.training == ProposalCounts(2000, 50) and options.testing == ProposalCounts(60, 1000)


# ---- nothing depends on the data -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_depends_on_data_on_the_cpu(kind):
    with FakeTensorMode():
        model, batch = KINDS[kind](), make_batch(2, 3)
        losses = model.loss(batch)
        total(losses).backward()
        detections = model.eval().detect(batch.images)
    assert losses.keys() == LOSSES
    assert detections.boxes.shape == (2, 30 * CLASSES, 4)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_depends_on_data_elsewhere(kind):
    """Meta tensors raise if their values are read, and take the code path of tensors on a GPU."""
    batch = make_batch(2, 3).to("meta")
    with torch.device("meta"):
        model = KINDS[kind]()
        losses = model.loss(batch)
        total(losses).backward()
        detections = model.eval().detect(batch.images)
    assert losses.keys() == LOSSES
    assert detections.boxes.shape == (2, 30 * CLASSES, 4)


@pytest.mark.usefixtures("unchecked")
def test_loss_compiles_as_one_graph(model):
    batch = make_batch(2, 3)
    results = []
    for loss in (model.loss, torch.compile(model.loss, fullgraph=True, backend="aot_eager")):
        torch.manual_seed(0)
        model.zero_grad()
        losses = loss(batch)
        total(losses).backward()
        gradients = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
        results.append((losses, gradients))
    torch.testing.assert_close(results[0], results[1], atol=1e-4, rtol=1e-3)


@pytest.mark.usefixtures("unchecked")
def test_detect_compiles_as_one_graph(pyramid):
    images = make_batch(0, 0).images
    compiled = torch.compile(pyramid.detect, fullgraph=True, backend="eager")(images)
    expected = pyramid.detect(images)
    for name in ("boxes", "scores", "labels", "valid"):
        torch.testing.assert_close(getattr(compiled, name), getattr(expected, name))


# ---- losses ----------------------------------------------------------------------------------------------------------


def test_a_gradient_reaches_every_trainable_parameter(model):
    model.train().zero_grad()
    total(model.loss(make_batch(3, 3))).backward()
    trainable = {name: value for name, value in model.named_parameters() if value.requires_grad}
    assert trainable.keys() < dict(model.named_parameters()).keys()
    assert [name for name, value in trainable.items() if value.grad is None or not value.grad.any()] == []


@pytest.mark.parametrize(("counts", "length"), [((0,), 1), ((0, 0), 4), ((0, 3), 3), ((1,), 1)])
def test_few_ground_truths_and_none(pyramid, counts, length):
    pyramid.zero_grad()
    losses = pyramid.loss(make_batch(*counts, length=length))
    assert all(loss.isfinite() for loss in losses.values())
    if not any(counts):
        assert losses["rpn_boxes"] == losses["boxes"] == 0
    total(losses).backward()
    assert pyramid.region_head.predictor.scores.weight.grad.any() and pyramid.rpn.objectness.weight.grad.any()


def test_parts_choose_the_losses(pyramid):
    batch = make_batch(2)
    assert pyramid.loss(batch, ("rpn",)).keys() == {"rpn_objectness", "rpn_boxes"}
    assert pyramid.loss(batch, ("boxes",)).keys() == {"classification", "boxes"}


def test_padding_changes_no_loss(pyramid):
    batch = make_batch(2, 4)
    targets = batch.targets
    filled = make_batch(3, 3).targets  # boxes that are not valid where they are appended
    padded = Targets(
        torch.cat([targets.boxes, filled.boxes], dim=1),
        torch.cat([targets.labels, filled.labels], dim=1),
        torch.cat([targets.valid, ~filled.valid], dim=1),
        torch.cat([targets.crowd, filled.crowd], dim=1),
    )
    torch.testing.assert_close(pyramid.loss(replace(batch, targets=padded)), pyramid.loss(batch))


def test_order_of_ground_truths_changes_no_loss(pyramid):
    batch = make_batch(4, 4)
    order = torch.tensor([2, 0, 3, 1])
    other = replace(batch, targets=batch.targets._map(lambda value: value[:, order]))
    torch.testing.assert_close(pyramid.loss(other), pyramid.loss(batch))


def test_order_of_images_changes_no_loss_and_no_detection(pyramid):
    batch = make_batch(4, 2, 3)
    order = torch.tensor([2, 0, 1])
    other = replace(batch, images=batch.images._map(lambda v: v[order]), targets=batch.targets._map(lambda v: v[order]))
    torch.testing.assert_close(pyramid.loss(other), pyramid.loss(batch))
    one, two = pyramid.detect(batch.images), pyramid.detect(other.images)
    assert one.valid.any(dim=1).all()
    torch.testing.assert_close(two.scores, one.scores[order])
    torch.testing.assert_close(two.boxes, one.boxes[order], atol=1e-3, rtol=0)


def test_what_lies_beyond_an_image_does_not_matter(pyramid):
    batch = make_batch(2, 2)
    pixels = batch.images.pixels.clone()
    pixels[1, :, 50:], pixels[1, :, :, 70:] = 255, 0
    other = replace(batch, images=replace(batch.images, pixels=pixels))
    torch.testing.assert_close(pyramid.loss(other), pyramid.loss(batch))


def test_a_crowd_is_no_ground_truth(pyramid):
    batch = make_batch(2, 2)
    crowd = torch.zeros_like(batch.targets.valid)
    crowd[:, 1] = True
    samples = pyramid.region_head.sample(pyramid.propose(batch.images), replace(batch.targets, crowd=crowd))
    positive = samples.valid & (samples.labels < CLASSES)
    assert positive.any()
    assert (
        samples.matched_boxes[positive] == batch.targets.boxes[:, :1].expand(-1, len(positive[0]), -1)[positive]
    ).all()


def test_ground_truths_are_among_the_samples(pyramid):
    batch = make_batch(4, 1)
    samples = pyramid.region_head.sample(pyramid.propose(batch.images), batch.targets)
    for row, count in enumerate((4, 1)):
        for box, label in zip(batch.targets.boxes[row, :count], batch.targets.labels[row, :count], strict=True):
            same = (samples.boxes[row] == box).all(dim=-1) & samples.valid[row]
            assert same.sum() == 1 and samples.labels[row, same] == label
            assert torch.equal(samples.matched_boxes[row, same][0], box)
    background = samples.valid & (samples.labels == CLASSES)
    assert background.any() and ((samples.labels <= CLASSES) & (samples.labels >= 0)).all()


@pytest.mark.parametrize("counts", [(4, 2), (0, 3), (0, 0)])
def test_losses_of_the_second_stage_are_torchvisions(pyramid, counts):
    batch = make_batch(*counts)
    heads = torchvisions_heads(pyramid)
    proposals, features = pyramid.propose(batch.images), pyramid.features(batch.images)
    targets = batch.targets
    _, expected = heads(
        {str(i): level for i, level in enumerate(features)},
        [boxes[valid] for boxes, valid in zip(proposals.boxes, proposals.valid, strict=True)],
        # The canvas, for from these torchvision guesses the strides.
        [(HEIGHT, WIDTH)] * 2,
        [
            {"boxes": b[v], "labels": t[v] + 1}
            for b, t, v in zip(targets.boxes, targets.labels, targets.valid, strict=True)
        ],
    )
    losses = pyramid.loss(batch, ("boxes",))
    torch.testing.assert_close(losses["classification"], expected["loss_classifier"])
    torch.testing.assert_close(losses["boxes"], expected["loss_box_reg"])


def torchvisions_heads(model: FasterRCNN) -> RoIHeads:
    """The second stage with the weights of `model`, in train mode; background comes first and has deltas."""
    head = TwoMLPHead(256 * 7 * 7, BOX_HEAD.channels)
    predictor = FastRCNNPredictor(BOX_HEAD.channels, CLASSES + 1)
    for layer, ours in zip((head.fc6, head.fc7), model.region_head.box_head.layers, strict=True):
        layer.load_state_dict(ours.state_dict())
    ours = model.region_head.predictor
    predictor.cls_score.load_state_dict({k: v.roll(1, dims=0) for k, v in ours.scores.state_dict().items()})
    predictor.bbox_pred.load_state_dict(
        {k: torch.cat([torch.zeros_like(v[:4]), v]) for k, v in ours.deltas.state_dict().items()}
    )
    pooling = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, sampling_ratio=2)
    return RoIHeads(pooling, head, predictor, 0.5, 0.5, 100_000, 0.5, None, 0.05, 0.5, 100).train()


# ---- detections ------------------------------------------------------------------------------------------------------


def test_detections_are_sorted_and_within_their_image(model):
    batch = make_batch(0, 0)
    detections = model.eval().detect(batch.images)
    assert detections.valid.any(dim=1).all() and not detections.boxes.requires_grad
    assert (detections.valid.int().diff(dim=1) <= 0).all() and (detections.scores.diff(dim=1) <= 0).all()
    assert (detections.boxes >= 0).all()
    assert (detections.boxes[..., 2:] <= batch.images.sizes.flip(-1)[:, None]).all()


def test_alone_and_in_a_batch_an_image_has_the_same_detections(pyramid):
    images = make_batch(0, 0, 0).images
    together = pyramid.detect(images)
    for row in range(3):
        alone = pyramid.detect(images._map(lambda value, row=row: value[row : row + 1]))
        torch.testing.assert_close(alone.scores[0], together.scores[row])
        torch.testing.assert_close(alone.boxes[0], together.boxes[row], atol=1e-3, rtol=0)


def test_validate_is_loss_detect_and_propose(pyramid):
    batch = make_batch(2, 3)
    losses, detections = pyramid.validate(batch)
    torch.testing.assert_close(losses, pyramid.loss(batch))
    others = pyramid.detect(batch.images)
    for one, other in ((detections.proposals, others.proposals), (detections, others)):
        assert torch.equal(one.boxes, other.boxes) and torch.equal(one.valid, other.valid)


def test_detections_come_with_the_proposals_that_they_were_made_from(pyramid):
    images = make_batch(0, 0).images
    detections = pyramid.detect(images)
    proposals = detections.proposals
    assert proposals.boxes.shape == (2, COUNTS.post_nms_top_k, 4) and proposals.valid.any(dim=1).all()
    expected = pyramid.rpn.propose(pyramid.rpn(pyramid.features(images)), images.sizes, pyramid.rpn.options.testing)
    assert torch.equal(proposals.boxes, expected.boxes) and torch.equal(proposals.scores, expected.scores)
    again = pyramid.detect(images, proposals)
    assert torch.equal(again.boxes, detections.boxes) and torch.equal(again.scores, detections.scores)
    assert torch.equal(again.proposals.boxes, proposals.boxes)


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_a_plain_tensor_is_images_that_fill_the_canvas(pyramid, images, dtype):
    pixels = torch.randint(0, 256, (images, 3, HEIGHT, WIDTH), dtype=torch.uint8).to(dtype)
    full = Images(pixels, torch.tensor([[HEIGHT, WIDTH]] * images))
    expected = pyramid.detect(full)
    assert expected.valid.any(dim=1).all()
    for detections in (pyramid(pixels), pyramid(full)):
        for name in ("boxes", "scores", "labels", "valid"):
            assert torch.equal(getattr(detections, name), getattr(expected, name)), name
        assert torch.equal(detections.proposals.boxes, expected.proposals.boxes)


def test_calling_the_model_takes_proposals_as_detect_does(pyramid):
    batch = make_batch(2, 3)
    proposals = pyramid.propose(batch.images)
    one, other = pyramid(batch.images, proposals), pyramid.detect(batch.images, proposals)
    assert torch.equal(one.boxes, other.boxes) and torch.equal(one.proposals.boxes, proposals.boxes)


def test_proposals_that_are_given_are_used(pyramid):
    batch = make_batch(2, 3)
    proposals = pyramid.propose(batch.images)
    torch.testing.assert_close(
        pyramid.loss(replace(batch, proposals=proposals), ("boxes",)), pyramid.loss(batch, ("boxes",))
    )
    assert torch.equal(pyramid.detect(batch.images, proposals).boxes, pyramid.detect(batch.images).boxes)


def test_mixed_precision_changes_little(pyramid):
    batch = make_batch(2, 3)
    expected = total(pyramid.loss(batch))
    with torch.autocast("cpu", torch.bfloat16):
        losses = pyramid.loss(batch)
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    torch.testing.assert_close(total(losses), expected, atol=0, rtol=0.1)


# ---- learning --------------------------------------------------------------------------------------------------------


def two_images() -> Batch:
    """Two drawn scenes on noise: in each a light and a dark rectangle, their class."""
    pixels = torch.randint(100, 140, (2, 3, 64, 64), dtype=torch.uint8)
    boxes = torch.tensor([[[6.0, 8, 30, 40], [36, 20, 60, 50]], [[20, 30, 58, 58], [4, 4, 24, 22]]])
    labels = torch.tensor([[0, 1], [1, 0]])
    for image, image_boxes, image_labels in zip(pixels, boxes.int().tolist(), labels.tolist(), strict=True):
        for (x1, y1, x2, y2), label in zip(image_boxes, image_labels, strict=True):
            image[:, y1:y2, x1:x2] = (230, 20)[label]
    valid = torch.ones(2, 2, dtype=torch.bool)
    return Batch(
        Images(pixels, torch.full((2, 2), 64)), Targets(boxes, labels, valid, ~valid), torch.arange(2), torch.ones(2, 2)
    )


def test_two_images_are_learned_by_heart():
    """AP50 is one: each image's two most certain detections are its ground truths."""
    steps = 60
    options = FasterRCNNOptions(
        backbone=ResNetOptions(18, norm="group", train_stages=5),
        rpn=replace(PYRAMID, batch_size_per_image=32),
        region_head=replace(REGION_HEAD, batch_size_per_image=32, positive_fraction=0.5),
        box_head=BoxHeadOptions(channels=256, layers=1),
    )
    model = FasterRCNN(2, options)
    batch = two_images()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0.1, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        total(model.loss(batch)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10)
        optimizer.step()
        schedule.step()

    detections = model.eval().detect(batch.images)
    assert (detections.scores[:, :2] > 0.7).all()
    for row in range(2):
        iou = box_iou(detections.boxes[row, :2], batch.targets.boxes[row])
        assert (iou > 0.7).sum() == 2 and iou.argmax(dim=1).unique().numel() == 2
        assert torch.equal(detections.labels[row, :2], batch.targets.labels[row, iou.argmax(dim=1)])
