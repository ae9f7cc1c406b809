"""Every network in every generation: a loss and its gradients, without a number being computed."""

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from detect.backbones import CNN, VGG, VGGM, AlexNet, GoogLeNet, LeNet, ResNet
from detect.errors import UserError
from detect.models import (
    RCNN,
    BoxOptions,
    CropOptions,
    Detector,
    FasterRCNN,
    FastRCNN,
    HeadOptions,
    ProposalCounts,
    RegionOptions,
    RPNOptions,
)
from detect.structures import Batch, Images, Proposals, Targets

CLASSES = 3
COUNTS = ProposalCounts(60, 30)
NETWORKS = {
    "lenet": LeNet(),
    "alexnet": AlexNet(),
    "vgg11": VGG(11),
    "vgg_m": VGGM(),
    "googlenet": GoogLeNet(initialization="he"),  # torchvision's own draws again until it likes a number
    "c4": ResNet(18, fpn=False),
    "fpn": ResNet(18),
}
STRIDES = {"lenet": [2], "fpn": [4, 8, 16, 32, 64]}


def rcnn(network: CNN) -> Detector:
    boxes = BoxOptions(samples=8, delta_weights=(1, 1, 1, 1))
    return RCNN(CLASSES, network, CropOptions(size=67, context=4, at_once=8), RegionOptions(), boxes)


def fast_rcnn(network: CNN) -> Detector:
    boxes = BoxOptions(samples=8, negative_from=0.1, delta_weights=None)
    return FastRCNN(CLASSES, network, head=HeadOptions(channels=32), boxes=boxes)


def faster_rcnn(network: CNN) -> Detector:
    levels = len(network.build()[0].features)
    rpn = RPNOptions(anchor_sizes=(8, 16, 32, 64, 96)[:levels], training=COUNTS, testing=COUNTS, samples=64)
    return FasterRCNN(CLASSES, network, rpn=rpn, head=HeadOptions(channels=32), boxes=BoxOptions(samples=8))


GENERATIONS = {"rcnn": rcnn, "fast_rcnn": fast_rcnn, "faster_rcnn": faster_rcnn}
LOSSES = {
    "rcnn": {"classification"},
    "fast_rcnn": {"classification", "boxes"},
    "faster_rcnn": {"classification", "boxes", "rpn_objectness", "rpn_boxes"},
}


def make_batch(proposals: bool) -> Batch:
    """Two images of different sizes with two truths each."""
    corner = torch.rand(2, 12, 2) * 30
    boxes = torch.cat([corner, corner + torch.rand(2, 12, 2) * 18 + 2], dim=-1)
    valid = torch.ones(2, 12, dtype=torch.bool)
    return Batch(
        images=Images(torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8), torch.tensor([[64, 96], [50, 70]])),
        targets=Targets(boxes[:, :2] + 1, torch.tensor([[0, 2], [1, 1]]), valid[:, :2], ~valid[:, :2]),
        ids=torch.arange(2),
        scales=torch.ones(2, 2),
        proposals=Proposals(boxes, valid.float(), valid) if proposals else None,
    )


def total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_is_every_detector(name, generation):
    with FakeTensorMode():
        model, batch = GENERATIONS[generation](NETWORKS[name]), make_batch(generation != "faster_rcnn")
        losses = model.loss(batch)
        total(losses).backward()
        detections = model.eval().detect(batch.images, batch.proposals)
    assert losses.keys() == LOSSES[generation]
    assert all(loss.shape == () for loss in losses.values())
    assert detections.boxes.shape[::2] == (2, 4)
    strides = [1] if generation == "rcnn" else STRIDES.get(name, [16])
    assert [level.stride for level in model.backbone.features] == strides
    # R-CNN's SVMs and regressors are not learned by gradients, and some of the stages stay as they are.
    learns = {part for part, one in model.named_parameters() if one.requires_grad}
    assert learns == {part for part, one in model.named_parameters() if one.grad is not None}
    parts = {"rpn", "predictor", "trunk", "backbone"} - ({"rpn"} if generation != "faster_rcnn" else set())
    assert {part.partition(".")[0] for part in learns} == parts - ({"backbone"} if generation == "rcnn" else set())


@pytest.mark.parametrize(
    ("network", "least"), [(LeNet(), 16), (AlexNet(), 63), (VGG(11), 32), (VGGM(), 41), (NETWORKS["googlenet"], 15)]
)
def test_crops_that_leave_a_network_no_cell_are_refused(network, least):
    with FakeTensorMode():
        RCNN(CLASSES, network, CropOptions(size=least, context=1))
        with pytest.raises(UserError, match=f"^size: {least - 1}: the network needs crops of at least {least} pixels"):
            RCNN(CLASSES, network, CropOptions(size=least - 1, context=1))


def test_an_rpn_needs_a_size_of_anchors_for_every_level():
    rpn = RPNOptions(anchor_sizes=(8, 16), training=COUNTS, testing=COUNTS)
    with FakeTensorMode(), pytest.raises(UserError, match="anchor_sizes"):
        FasterRCNN(CLASSES, ResNet(18), rpn=rpn)
