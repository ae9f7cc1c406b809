"""Fast R-CNN: given proposals, background from an IoU on, regression targets of each class normalised."""

from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from detect.backbones import FPNOptions, ResNetOptions, VGGOptions
from detect.errors import UserError
from detect.models import (
    BoxHeadOptions,
    FastRCNN,
    FastRCNNOptions,
    PoolingOptions,
    PostprocessOptions,
    RegionHeadOptions,
)
from detect.models.box_coder import BoxCoder
from detect.models.delta_statistics import DeltaStatistics
from detect.models.matcher import Matcher
from detect.models.sampler import Sampler
from detect.structures import Batch, Images, Proposals, Targets

CLASSES = 3
HEIGHT, WIDTH = 64, 96
REGION_HEAD = RegionHeadOptions(batch_size_per_image=16, negative_iou_min=0.1, delta_weights=None)


def fpn(region_head: RegionHeadOptions = REGION_HEAD, **options) -> FastRCNN:
    backbone, box_head = ResNetOptions(18, norm="batch"), BoxHeadOptions(channels=32)
    return FastRCNN(CLASSES, FastRCNNOptions(backbone=backbone, box_head=box_head, region_head=region_head, **options))


def c4(**options) -> FastRCNN:
    backbone = ResNetOptions(18, norm="batch")
    return FastRCNN(CLASSES, FastRCNNOptions(backbone=backbone, neck=None, region_head=REGION_HEAD, **options))


def vgg(kind: Literal["align", "pool"] = "pool", **options) -> FastRCNN:
    pooling = PoolingOptions(kind=kind)
    return FastRCNN(
        CLASSES,
        FastRCNNOptions(backbone=VGGOptions(11), neck=None, pooling=pooling, region_head=REGION_HEAD, **options),
    )


KINDS = {"fpn": fpn, "c4": c4, "vgg": vgg}


def make_batch(ground_truths: int = 3, proposals: int = 40) -> Batch:
    """Two images of different sizes, with proposals close to the ground truths and far from them."""
    corner = torch.rand(2, ground_truths, 2) * 20
    boxes = torch.cat([corner, corner + torch.rand(2, ground_truths, 2) * 30 + 6], dim=-1)
    near = boxes[:, torch.arange(proposals) % ground_truths] + torch.randn(2, proposals, 4) * 4
    near[..., 2:] = torch.maximum(near[..., 2:], near[..., :2] + 2)
    valid = torch.ones(2, ground_truths, dtype=torch.bool)
    given = torch.ones(2, proposals, dtype=torch.bool)
    return Batch(
        images=Images(
            torch.randint(0, 256, (2, 3, HEIGHT, WIDTH), dtype=torch.uint8), torch.tensor([[64, 96], [50, 70]])
        ),
        targets=Targets(boxes, torch.randint(0, CLASSES, (2, ground_truths)), valid, torch.zeros_like(valid)),
        ids=torch.arange(2),
        scales=torch.ones(2, 2),
        proposals=Proposals(near.clamp(0, 50), given.float(), given),
    )


def total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


def test_defaults_are_the_papers():
    """Girshick 2015, §2.3: 64 regions an image, 25 % objects, background from IoU 0.1; NMS as in R-CNN."""
    with torch.device("meta"):
        model = FastRCNN(CLASSES)
    assert model.options == FastRCNNOptions(
        name="fast_rcnn",
        backbone=ResNetOptions(50, norm="frozen", train_stages=3, last_stage=5),
        neck=FPNOptions(channels=256, first_level=2, norm=None),
        pooling=PoolingOptions(kind="align", sampling_ratio=2, aligned=False),
        box_head=BoxHeadOptions(convolutions=0, layers=2, channels=1024),
        region_head=RegionHeadOptions(
            batch_size_per_image=64,
            positive_fraction=0.25,
            positive_iou=0.5,
            negative_iou=0.5,
            negative_iou_min=0.1,
            class_agnostic=False,
            delta_weights=None,
            smooth_l1_beta=1.0,
        ),
        postprocess=PostprocessOptions(
            score_threshold=0.05, nms_threshold=0.3, max_detections=100, pre_nms_top_k=4096, min_size=0.01
        ),
        scales=(),
        svd=(),
    )
    head = model.region_head
    assert model.rpn is None and FastRCNNOptions.proposals == "given" and FastRCNNOptions.recipes == ("joint",)
    assert head.matcher == Matcher(0.5, 0.5, best_is_positive=False, negative_iou_min=0.1)
    assert head.sampler == Sampler(64, 0.25)
    assert head.box_coder == BoxCoder((1.0, 1.0, 1.0, 1.0)) and isinstance(head.statistics, DeltaStatistics)
    assert head.smooth_l1_beta == 1.0 and model.postprocessing == model.options.postprocess
    assert head.predictor.deltas.out_features == 4 * CLASSES and head.predictor.scores.out_features == CLASSES + 1
    assert (head.box_head.pooled, head.box_head.channels_in, head.box_head.channels) == (7, 256, 1024)


def test_a_section_that_is_given_in_part_keeps_the_papers_other_values():
    options = FastRCNNOptions(region_head={"batch_size_per_image": 8}, postprocess={"max_detections": 7})
    assert options.region_head == RegionHeadOptions(8, 0.25, 0.5, 0.5, 0.1, False, None, 1.0)
    assert options.postprocess == PostprocessOptions(nms_threshold=0.3, max_detections=7)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_depends_on_data(kind):
    with FakeTensorMode():
        model, batch = KINDS[kind](), make_batch()
        losses = model.loss(batch)
        total(losses).backward()
        detections = model.eval().detect(batch.images, batch.proposals)
    assert losses.keys() == {"classification", "boxes"}
    assert detections.boxes.shape == (2, 100, 4)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("kind", ["fpn", "c4"])
def test_loss_compiles_as_one_graph(kind):
    torch.manual_seed(0)
    model, batch = KINDS[kind](), make_batch()
    results = []
    for loss in (model.loss, torch.compile(model.loss, fullgraph=True, backend="aot_eager")):
        torch.manual_seed(0)
        results.append(loss(batch))
    torch.testing.assert_close(results[0], results[1], atol=1e-5, rtol=1e-4)


def test_without_proposals_there_is_nothing_to_detect():
    with pytest.raises(ValueError, match="needs proposals"):
        fpn().detect(make_batch().images)


def test_proposals_that_are_padding_change_nothing():
    torch.manual_seed(0)
    model, batch = fpn().eval(), make_batch()
    # The scores of an untrained network hardly differ.
    torch.nn.init.normal_(model.region_head.predictor.scores.weight, std=0.3)
    given = batch.proposals
    more = Proposals(
        torch.cat([given.boxes, torch.zeros(2, 9, 4)], dim=1),
        torch.cat([given.scores, torch.zeros(2, 9)], dim=1),
        torch.cat([given.valid, torch.zeros(2, 9, dtype=torch.bool)], dim=1),
    )
    one, other = model.detect(batch.images, given), model.detect(batch.images, more)
    assert torch.equal(one.valid, other.valid) and one.valid.any()
    torch.testing.assert_close(one.boxes[one.valid], other.boxes[one.valid], atol=1e-4, rtol=0)


def test_background_begins_at_an_iou():
    """IoU with the ground truth (0, 0, 10, 10): 0.5 object, 0.3 background, 0.1 still background, less ignored."""
    boxes = torch.tensor([[[0.0, 0, 10, 5], [0, 0, 10, 3], [0, 0, 10, 1], [0, 0, 5, 1], [20, 20, 30, 30]]])
    targets = Targets(
        torch.tensor([[[0.0, 0, 10, 10]]]),
        torch.tensor([[1]]),
        torch.ones(1, 1, dtype=torch.bool),
        torch.zeros(1, 1, dtype=torch.bool),
    )
    model = fpn(replace(REGION_HEAD, batch_size_per_image=8))
    proposals = Proposals(boxes, torch.ones(1, 5), torch.ones(1, 5, dtype=torch.bool))
    samples = model.region_head.sample(proposals, targets)
    drawn = {
        (tuple(box), label)
        for box, label in zip(
            samples.boxes[samples.valid].tolist(), samples.labels[samples.valid].tolist(), strict=True
        )
    }
    assert drawn == {
        ((0, 0, 10, 10), 1),  # the ground truth itself is a proposal
        ((0, 0, 10, 5), 1),
        ((0, 0, 10, 3), CLASSES),
        ((0, 0, 10, 1), CLASSES),
    }


def test_images_without_ground_truths_have_no_samples_and_no_loss():
    batch = make_batch()
    empty = replace(batch, targets=replace(batch.targets, valid=torch.zeros_like(batch.targets.valid)))
    losses = fpn().loss(empty)
    assert total(losses).item() == 0


# ---- several sizes of the image --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["align", "pool"])
def test_each_proposal_is_pooled_where_it_is_nearest_to_224_pixels(kind):
    """At twice the size one of 100 pixels, as it is one of 200, at half the size one of 400."""
    torch.manual_seed(0)
    one, several = vgg(kind).eval(), vgg(kind, scales=(2, 0.5)).eval()
    several.load_state_dict(one.state_dict())
    pixels = torch.randint(0, 256, (1, 3, 448, 448), dtype=torch.uint8)
    images = Images(pixels, torch.tensor([[448, 448]]))
    boxes = torch.tensor([[[0.0, 0, 200, 200], [10, 20, 110, 120], [0, 0, 400, 400]]])
    maps = several.features(images)
    assert [level.shape[-1] for level in maps] == [28, 56, 14]
    assert several.region_head.pooling.levels(boxes).tolist() == [[0, 1, 2]]
    pooled = several.region_head.pooling(maps, boxes)
    for place, scale in enumerate((1, 2, 0.5)):
        alone = one.region_head.pooling([maps[place]], boxes[:, place : place + 1] * scale)
        torch.testing.assert_close(pooled[place], alone[0])


def test_training_sees_one_size():
    torch.manual_seed(0)
    model, batch = c4(scales=(2,)), make_batch()
    assert len(model.features(batch.images)) == 1
    assert total(model.loss(batch)).isfinite()
    assert model.eval().detect(batch.images, batch.proposals).valid.any()


def test_a_feature_pyramid_has_scales_of_its_own():
    message = r"^scales: a feature pyramid already has several scales; leave the option out$"
    with pytest.raises(UserError, match=message):
        fpn(scales=(2,))


# ---- statistics ------------------------------------------------------------------------------------------------------


def image_of(deltas: list[float], label: int) -> tuple[Tensor, Targets]:
    """Return proposals 10 px wide, each `delta` of its width to the left of a ground truth."""
    ground_truth = torch.tensor([[[20.0, 20, 30, 30]]])
    boxes = ground_truth[0, 0] - torch.tensor([[10 * delta, 0, 10 * delta, 0] for delta in deltas])
    valid = torch.ones(1, 1, dtype=torch.bool)
    return boxes, Targets(ground_truth, torch.tensor([[label]]), valid, ~valid)


def test_an_image_without_objects_tells_nothing_of_deltas():
    none = torch.zeros(1, 0, dtype=torch.int64)
    empty = Targets(torch.zeros(1, 0, 4), none, none.bool(), none.bool())
    images = [image_of([0.1, 0.3], 0), (torch.rand(5, 4), empty)]
    one, other = DeltaStatistics(1), DeltaStatistics(1)
    one.measure(images, BoxCoder(), Matcher(0.5, 0.5))
    other.measure(images[:1], BoxCoder(), Matcher(0.5, 0.5))
    assert torch.equal(one.mean, other.mean) and torch.equal(one.std, other.std)


def test_statistics_are_those_of_the_objects_of_each_class():
    statistics = DeltaStatistics(3)
    images = [image_of([0.1, 0.3], 0), image_of([-0.1, 0.9], 0), image_of([0.2], 2)]  # 0.9 has too little IoU
    statistics.measure(images, BoxCoder(), Matcher(0.5, 0.5))
    assert statistics.mean[0].tolist() == pytest.approx([0.1, 0, 0, 0], abs=1e-6)
    assert statistics.std[0, 0].item() == pytest.approx((0.08 / 3) ** 0.5, abs=1e-6)
    assert statistics.std[0, 1:].tolist() == [1, 1, 1]  # all the same: not divided by zero
    for row in (1, 2):  # none, and a single one
        assert statistics.mean[row].tolist() == [0] * 4 and statistics.std[row].tolist() == [1] * 4


def test_regression_targets_are_normalised_and_restored():
    torch.manual_seed(0)
    statistics = DeltaStatistics(2)
    statistics.mean.normal_()
    statistics.std.uniform_(0.1, 2)
    regression_targets, labels = torch.randn(5, 4), torch.tensor([0, 1, 1, 0, 2])  # 2 is background
    normalised = statistics.normalize(regression_targets, labels)
    every = statistics.restore(normalised[:, None].expand(-1, 2, -1))
    torch.testing.assert_close(every[torch.arange(4), labels[:4]], regression_targets[:4])


def test_statistics_travel_with_the_weights():
    model, other = fpn(), fpn()
    model.region_head.statistics.mean.fill_(0.25)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.region_head.statistics.mean, model.region_head.statistics.mean)
