"""R-CNN: crops of every proposal, classified by softmax, or by SVMs and regressors on chosen layers."""

from dataclasses import replace

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F

from detect.backbones import AlexNetOptions, BackboneOptions, ResNetOptions
from detect.errors import UserError
from detect.models import (
    RCNN,
    CropOptions,
    CropPredictorOptions,
    PostprocessOptions,
    RCNNOptions,
    RegionHeadOptions,
)
from detect.models.box_coder import BoxCoder
from detect.models.matcher import Matcher
from detect.models.region_pooling import Warp
from detect.models.sampler import Sampler
from detect.ops.boxes import iou_matrix
from detect.structures import Batch, Images, Proposals, Targets

CLASSES = 3
CROP = CropOptions(size=40, context=4, batch_size=8)
REGION_HEAD = RegionHeadOptions(batch_size_per_image=8, delta_weights=(1, 1, 1, 1))


def rcnn(**predictor) -> RCNN:
    return build(ResNetOptions(18, norm="batch", train_stages=5), CROP, **predictor)


def build(backbone: BackboneOptions, crop: CropOptions, **predictor) -> RCNN:
    predictor = CropPredictorOptions(**predictor)
    return RCNN(CLASSES, RCNNOptions(backbone=backbone, crop=crop, predictor=predictor, region_head=REGION_HEAD))


def make_batch(proposals: int = 12) -> Batch:
    """Two images of different sizes with two ground truths each."""
    corner = torch.rand(2, proposals, 2) * 30
    boxes = torch.cat([corner, corner + torch.rand(2, proposals, 2) * 18 + 2], dim=-1)
    valid = torch.ones(2, proposals, dtype=torch.bool)
    return Batch(
        images=Images(torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8), torch.tensor([[64, 96], [50, 70]])),
        targets=Targets(boxes[:, :2] + 1, torch.tensor([[0, 2], [1, 1]]), valid[:, :2], ~valid[:, :2]),
        ids=torch.arange(2),
        scales=torch.ones(2, 2),
        proposals=Proposals(boxes, valid.float(), valid),
    )


def livened(model: RCNN) -> RCNN:
    predictor = model.region_head.predictor
    for layer in (predictor.logits, predictor.svms, predictor.regressors):
        if layer is not None:
            torch.nn.init.normal_(layer.weight, std=0.1)
    return model


# ---- the warp --------------------------------------------------------------------------------------------------------


def test_crops_are_the_region_resized():
    """Bilinear resizing by torch is the oracle inside of the crop; at its border that repeats pixels, R-CNN sees on."""
    pixels = torch.randn(1, 3, 80, 90)
    boxes = torch.tensor([[[10.0, 20, 40, 70], [5, 6, 85, 26]]])
    crops = Warp(CropOptions(size=32, context=0))([pixels], boxes)
    for crop, (x1, y1, x2, y2) in zip(crops, boxes[0].int().tolist(), strict=True):
        expected = F.interpolate(pixels[:, :, y1:y2, x1:x2], (32, 32), mode="bilinear", align_corners=False)[0]
        torch.testing.assert_close(crop[:, 2:-2, 2:-2], expected[:, 2:-2, 2:-2], atol=1e-4, rtol=0)


def test_context_is_what_lies_around_and_the_mean_beyond_the_image():
    """A region of 24 × 24 in a crop of 32 with 4 of context: each pixel of the image is one of the crop."""
    pixels = torch.randn(1, 3, 60, 60)
    inside, corner = Warp(CropOptions(size=32, context=4))(
        [pixels], torch.tensor([[[20.0, 10, 44, 34], [0, 0, 24, 24]]])
    )
    torch.testing.assert_close(inside, pixels[0, :, 6:38, 16:48], atol=1e-4, rtol=0)
    torch.testing.assert_close(corner[:, 4:, 4:], pixels[0, :, :28, :28], atol=1e-4, rtol=0)
    assert not corner[:, :3].any() and not corner[:, :, :3].any()


def test_context_must_leave_something():
    with pytest.raises(UserError, match=r"^crop\.context: 16 on each side leave nothing of 32 pixels; lower it$"):
        Warp(CropOptions(size=32, context=16))


# ---- the network -----------------------------------------------------------------------------------------------------


def test_defaults_are_the_papers():
    """Girshick et al. 2014, §2.3 and Appendix A: 32 objects of 128 regions, 16 pixels of context; NMS at 0.3."""
    with torch.device("meta"):
        model = RCNN(CLASSES)
    assert model.options == RCNNOptions(
        name="rcnn",
        backbone=ResNetOptions(50, norm="frozen", train_stages=3, last_stage=5),
        crop=CropOptions(size=224, context=16, batch_size=256),
        predictor=CropPredictorOptions(layer=None, classifier="svm", regression=True),
        region_head=RegionHeadOptions(
            batch_size_per_image=128,
            positive_fraction=0.25,
            positive_iou=0.5,
            negative_iou=0.5,
            negative_iou_min=0.0,
            class_agnostic=False,
            delta_weights=(1.0, 1.0, 1.0, 1.0),
            smooth_l1_beta=1 / 9,
        ),
        postprocess=PostprocessOptions(
            score_threshold=0.05, nms_threshold=0.3, max_detections=100, pre_nms_top_k=4096, min_size=0.01
        ),
    )
    head = model.region_head
    assert RCNNOptions.proposals == "given" and RCNNOptions.recipes == ("rcnn_stages",)
    assert model.rpn is None and model.neck is None
    assert head.matcher == Matcher(0.5, 0.5, best_is_positive=False, negative_iou_min=0.0)
    assert head.sampler == Sampler(128, 0.25)
    assert head.box_coder == BoxCoder((1.0, 1.0, 1.0, 1.0)) and head.statistics is None
    assert model.postprocessing == model.options.postprocess and head.crops_per_pass == 256
    assert head.box_head.layers == {"pool5": 2048} and head.box_head.pooled == 224
    assert (head.pooling.size, head.pooling.scale) == (224, 224 / 192)
    assert head.predictor.layer == "pool5" and head.predictor.svms.out_features == CLASSES
    assert head.predictor.logits.out_features == CLASSES + 1 and head.predictor.regressors.out_features == 4 * CLASSES


def test_a_section_that_is_given_in_part_keeps_the_papers_other_values():
    options = RCNNOptions(region_head={"positive_fraction": 0.5}, postprocess={"score_threshold": 0.1})
    assert options.region_head == RegionHeadOptions(128, 0.5, 0.5, 0.5, 0.0, False, (1, 1, 1, 1), 1 / 9)
    assert options.postprocess == PostprocessOptions(score_threshold=0.1, nms_threshold=0.3)


@pytest.mark.parametrize("predictor", [{}, {"classifier": "softmax", "regression": False}])
def test_nothing_depends_on_data(predictor):
    with FakeTensorMode():
        model, batch = rcnn(**predictor), make_batch()
        losses = model.loss(batch)
        losses["classification"].backward()
        detections = model.eval().detect(batch.images, batch.proposals)
    assert losses.keys() == {"classification"}
    assert detections.boxes.shape == (2, 12 * CLASSES, 4)


@pytest.mark.usefixtures("unchecked")
def test_loss_compiles_as_one_graph():
    torch.manual_seed(0)
    model, batch = rcnn(), make_batch()
    results = []
    for loss in (model.loss, torch.compile(model.loss, fullgraph=True, backend="aot_eager")):
        torch.manual_seed(0)
        results.append(loss(batch))
    torch.testing.assert_close(results[0], results[1], atol=1e-5, rtol=1e-4)


def test_it_does_not_matter_how_many_crops_go_at_once():
    torch.manual_seed(0)
    model, batch = livened(rcnn()).eval(), make_batch()
    features = model.features(batch.images)
    assert model.region_head.crops_per_pass == 8
    few = model.region_head(features, batch.proposals.boxes)
    model.region_head.crops_per_pass = 1000
    torch.testing.assert_close(few, model.region_head(features, batch.proposals.boxes), atol=1e-5, rtol=1e-4)


def test_only_the_network_is_trained_by_gradients():
    model = rcnn()
    model.loss(make_batch())["classification"].backward()
    without = {name for name, value in model.named_parameters() if value.grad is None}
    assert without == {
        f"region_head.predictor.{part}.{kind}" for part in ("svms", "regressors") for kind in ("weight", "bias")
    }


def test_margins_become_scores_and_regressors_move_boxes():
    model, batch = rcnn().eval(), make_batch(2)
    head = model.region_head
    model.postprocessing = replace(model.postprocessing, nms_threshold=1.0)
    head.predictor.svms.bias.copy_(torch.tensor([0.0, -9.0, 2.0]))
    head.predictor.regressors.bias.view(CLASSES, 4)[2] = torch.tensor([0.5, 0.0, 0.0, 0.0])
    given = batch.proposals
    detections = model.detect(batch.images, Proposals(given.boxes[:, :1], given.scores[:, :1], given.valid[:, :1]))
    assert detections.labels[0, detections.valid[0]].tolist() == [2, 0]
    torch.testing.assert_close(detections.scores[0, :2], torch.tensor([2.0, 0.0]).sigmoid())
    box = given.boxes[0, 0]
    torch.testing.assert_close(detections.boxes[0, 1], box)
    torch.testing.assert_close(detections.boxes[0, 0], box + torch.tensor([0.5, 0, 0.5, 0]) * (box[2] - box[0]))


def test_softmax_without_regression_leaves_proposals_where_they_are():
    torch.manual_seed(0)
    model, batch = livened(rcnn(classifier="softmax", regression=False)).eval(), make_batch()
    detections = model.detect(batch.images, batch.proposals)
    assert detections.valid.any()
    for row in range(2):
        overlap = iou_matrix(detections.boxes[row, detections.valid[row]], batch.proposals.boxes[row])
        assert (overlap.amax(dim=1) > 0.9999).all()


def test_layers_are_those_of_the_network():
    model = build(AlexNetOptions(), CropOptions(size=67, context=4), layer="pool5")
    assert model.region_head.predictor.svms.in_features == 256 * 6 * 6
    with pytest.raises(UserError, match=r"^predictor\.layer: the network has pool5, not fc7$"):
        rcnn(layer="fc7")
    with pytest.raises(UserError, match=r"^predictor\.layer: softmax uses the last, fc7; choose svm for pool5$"):
        build(AlexNetOptions(), CropOptions(size=67, context=4), layer="pool5", classifier="softmax")
