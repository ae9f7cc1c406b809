"""Every network in every generation: a loss and its gradients, without a number being computed."""

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from detect.backbones import (
    AlexNetOptions,
    BackboneOptions,
    FPNOptions,
    GoogLeNetOptions,
    LeNetOptions,
    ResNetOptions,
    TimmOptions,
    VGGMOptions,
    VGGOptions,
)
from detect.errors import UserError
from detect.models import (
    RCNN,
    BoxHeadOptions,
    CropOptions,
    Detector,
    FasterRCNN,
    FasterRCNNOptions,
    FastRCNN,
    FastRCNNOptions,
    ProposalCounts,
    RCNNOptions,
    RegionHeadOptions,
    RPNOptions,
)
from detect.structures import Batch, Images, Proposals, Targets

CLASSES = 3
COUNTS = ProposalCounts(60, 30)
GOOGLENET = GoogLeNetOptions(initialization="he")  # torchvision's own draws again until it likes a number
FPN, P3 = FPNOptions(), FPNOptions(channels=64, first_level=3)
# A network, its neck, and the strides of the maps that the heads run on.
NETWORKS = {
    "lenet": (LeNetOptions(), None, [2]),
    "alexnet": (AlexNetOptions(), None, [16]),
    "alexnet_fpn": (AlexNetOptions(), FPN, [4, 8, 16, 32]),
    "alexnet_p3": (AlexNetOptions(), P3, [8, 16, 32, 64]),
    "vgg11": (VGGOptions(11), None, [16]),
    "vgg11_fpn": (VGGOptions(11), FPN, [4, 8, 16, 32]),
    "vgg11_p3": (VGGOptions(11), P3, [8, 16, 32, 64]),
    "vgg_m": (VGGMOptions(), None, [16]),
    "vgg_m_p3": (VGGMOptions(), P3, [8, 16, 32, 64]),
    "googlenet": (GOOGLENET, None, [16]),
    "googlenet_fpn": (GOOGLENET, FPN, [4, 8, 16, 32, 64]),
    "googlenet_p3": (GOOGLENET, P3, [8, 16, 32, 64, 128]),
    "c4": (ResNetOptions(18), None, [16]),
    "dc5": (ResNetOptions(18, dilated=True), None, [16]),
    "fpn": (ResNetOptions(18), FPN, [4, 8, 16, 32, 64]),
    "p3": (ResNetOptions(18), P3, [8, 16, 32, 64, 128]),
    "fpn_to_stage_4": (ResNetOptions(18, last_stage=4), FPN, [4, 8, 16, 32]),
}


def rcnn(network: BackboneOptions, neck: FPNOptions | None) -> Detector:
    region_head = RegionHeadOptions(batch_size_per_image=8, delta_weights=(1, 1, 1, 1))
    crop = CropOptions(size=67, context=4, batch_size=8)
    return RCNN(CLASSES, RCNNOptions(backbone=network, crop=crop, region_head=region_head))


def fast_rcnn(network: BackboneOptions, neck: FPNOptions | None) -> Detector:
    region_head = RegionHeadOptions(batch_size_per_image=8, negative_iou_min=0.1, delta_weights=None)
    box_head = BoxHeadOptions(channels=32)
    return FastRCNN(CLASSES, FastRCNNOptions(backbone=network, neck=neck, box_head=box_head, region_head=region_head))


def faster_rcnn(network: BackboneOptions, neck: FPNOptions | None) -> Detector:
    backbone = network.build(multi_scale=neck is not None)[0]
    levels = 1 if neck is None else len(neck.build(backbone.levels, network.norm).levels)
    sizes = (8, 16, 32, 64, 96)[:levels]
    options = FasterRCNNOptions(
        backbone=network,
        neck=neck,
        rpn=RPNOptions(anchor_sizes=sizes, training=COUNTS, testing=COUNTS, batch_size_per_image=64),
        box_head=BoxHeadOptions(channels=32),
        region_head=RegionHeadOptions(batch_size_per_image=8),
    )
    return FasterRCNN(CLASSES, options)


GENERATIONS = {"rcnn": rcnn, "fast_rcnn": fast_rcnn, "faster_rcnn": faster_rcnn}
# R-CNN crops the image, without a neck. Fast R-CNN has no use for levels above stride 32.
GRID = [
    (name, generation)
    for name, (_, neck, _) in NETWORKS.items()
    for generation in GENERATIONS
    if (generation != "rcnn" or neck is None) and (generation != "fast_rcnn" or neck is not P3)
]
LOSSES = {
    "rcnn": {"classification"},
    "fast_rcnn": {"classification", "boxes"},
    "faster_rcnn": {"classification", "boxes", "rpn_objectness", "rpn_boxes"},
}


def make_batch(proposals: bool) -> Batch:
    """Two images of different sizes with two ground truths each."""
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


@pytest.mark.parametrize(("name", "generation"), GRID)
def test_every_network_is_every_detector(name, generation):
    network, neck, strides = NETWORKS[name]
    with FakeTensorMode():
        model, batch = GENERATIONS[generation](network, neck), make_batch(generation != "faster_rcnn")
        losses = model.loss(batch)
        total(losses).backward()
        detections = model.eval().detect(batch.images, batch.proposals)
        features = model.features(batch.images)
    assert losses.keys() == LOSSES[generation]
    assert all(loss.shape == () for loss in losses.values())
    assert detections.boxes.shape[::2] == (2, 4)
    strides = [1] if generation == "rcnn" else strides
    levels = list(model.neck.levels if model.neck else model.backbone.levels.values())
    assert [level.stride for level in levels] == strides
    assert [tuple(level.shape) for level in features] == [
        (2, level.channels, -(-64 // level.stride), -(-96 // level.stride)) for level in levels
    ]
    # R-CNN's SVMs and regressors are not trained by gradients, and some of the stages stay as they are.
    trained = {part for part, one in model.named_parameters() if one.requires_grad}
    assert trained == {part for part, one in model.named_parameters() if one.grad is not None}
    parts = {"backbone", "region_head.box_head", "region_head.predictor"}
    parts |= {"rpn"} if generation == "faster_rcnn" else set()
    parts |= {"neck"} if neck is not None else set()
    # R-CNN's network is its box head.
    assert {part_of(name) for name in trained} == parts - ({"backbone"} if generation == "rcnn" else set())


def part_of(name: str) -> str:
    """Return the module of a parameter, within the region head its part."""
    parts = name.split(".")
    return ".".join(parts[:2]) if parts[0] == "region_head" else parts[0]


@pytest.mark.parametrize(
    ("neck", "generation"),
    [(FPN, "fast_rcnn"), (FPN, "faster_rcnn"), (P3, "faster_rcnn")],
    ids=["fpn-fast", "fpn-faster", "p3-faster"],
)
@pytest.mark.parametrize("model", ["resnet10t", "mobilenetv3_small_050"])
def test_timms_networks_have_necks(model, neck, generation):
    pytest.importorskip("timm", reason="timm is an extra")
    with FakeTensorMode():
        detector, batch = GENERATIONS[generation](TimmOptions(model), neck), make_batch(generation != "faster_rcnn")
        losses = detector.loss(batch)
        total(losses).backward()
        detections = detector.eval().detect(batch.images, batch.proposals)
    assert losses.keys() == LOSSES[generation] and detections.boxes.shape[::2] == (2, 4)
    levels = list(detector.neck.levels)
    assert [level.stride for level in levels] == [2**neck.first_level << octave for octave in range(5)]
    assert all(one.grad is not None for one in detector.neck.parameters())


@pytest.mark.parametrize("generation", ["fast_rcnn", "faster_rcnn"])
@pytest.mark.parametrize(
    ("network", "neck", "message"),
    [
        (
            LeNetOptions(),
            FPN,
            r"^neck: a pyramid needs maps at strides 4, 8 and so on, the backbone has 1, 2; set neck",
        ),
        (
            LeNetOptions(),
            P3,
            r"^neck: a pyramid needs maps at strides 8, 16 and so on, the backbone has 1, 2; set neck",
        ),
        (VGGMOptions(), FPN, r"^neck: a pyramid needs maps at strides 4, 8 and so on, the backbone has 2, 8, 16; set"),
        (
            ResNetOptions(18, dilated=True),
            FPN,
            r"^backbone\.dilated: a neck needs stage 5 at stride 32; leave it out, or",
        ),
    ],
    ids=["lenet", "lenet_p3", "vgg_m", "dilated"],
)
def test_a_neck_on_a_network_without_the_strides_is_refused(network, neck, message, generation):
    model = {"fast_rcnn": FastRCNN, "faster_rcnn": FasterRCNN}[generation]
    if model is FastRCNN and neck is P3:
        message = "^neck.first_level: levels above stride 32 need an RPN or a one-stage detector; choose 2"
    with FakeTensorMode(), pytest.raises(UserError, match=message):
        model(CLASSES, model.Options(backbone=network, neck=neck))


@pytest.mark.parametrize(
    ("network", "least"),
    [
        (LeNetOptions(), 16),
        (AlexNetOptions(), 63),
        (VGGOptions(11), 32),
        (VGGMOptions(), 41),
        (GOOGLENET, 15),
    ],
)
def test_crops_that_leave_a_network_no_cell_are_refused(network, least):
    with FakeTensorMode():
        RCNN(CLASSES, RCNNOptions(backbone=network, crop=CropOptions(size=least, context=1)))
        with pytest.raises(UserError, match=f"^size: {least - 1}: the network needs crops of at least {least} pixels"):
            RCNN(CLASSES, RCNNOptions(backbone=network, crop=CropOptions(size=least - 1, context=1)))


def test_an_rpn_needs_a_size_of_anchors_for_every_level():
    rpn = RPNOptions(anchor_sizes=(8, 16), training=COUNTS, testing=COUNTS)
    with FakeTensorMode(), pytest.raises(UserError, match=r"^rpn\.anchor_sizes: 2 sizes for 5 levels; give one"):
        FasterRCNN(CLASSES, FasterRCNNOptions(backbone=ResNetOptions(18), rpn=rpn))
