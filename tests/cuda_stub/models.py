"""Run every kind of model on the device `cuda`, where each wait for the GPU is an error; print the name of each.

One of three steps is deterministic: torch then raises on operations whose sums have no fixed order.
"""

import warnings

import torch
from torch.nn.utils import clip_grad_norm_

from detect.backbones import (
    AlexNetOptions,
    CSPDarknetOptions,
    GoogLeNetOptions,
    LeNetOptions,
    PAFPNOptions,
    ResNetOptions,
    VGGOptions,
)
from detect.models import (
    CascadeRCNNOptions,
    Classifier,
    ClassifierOptions,
    FasterRCNNOptions,
    FastRCNNOptions,
    MaskHeadOptions,
    MaskRCNNOptions,
    PoolingOptions,
    ProposalCounts,
    RCNNOptions,
    RPNOptions,
    YOLOXOptions,
    build_detector,
)
from detect.prediction.prepare import prepare
from detect.structures import Batch, ClassificationBatch, Images, Proposals, Targets

CLASSES = 3
BODY, BATCH_NORM = ResNetOptions(18), ResNetOptions(18, norm="batch")
COUNTS = ProposalCounts(200, 50)
RPN = {"rpn": RPNOptions(training=COUNTS, testing=COUNTS)}
NANO = {"width": 0.25, "depthwise": True}
C4_MASKS = MaskHeadOptions(convolutions=0)
POOL = PoolingOptions(kind="pool")
DETECTORS = {
    "Faster R-CNN": FasterRCNNOptions(backbone=BODY, **RPN),
    "Faster R-CNN, batch norm": FasterRCNNOptions(backbone=BATCH_NORM, **RPN),
    "Faster R-CNN C4": FasterRCNNOptions(backbone=ResNetOptions(50), neck=None, **RPN),
    "Faster R-CNN DC5": FasterRCNNOptions(backbone=ResNetOptions(50, dilated=True), neck=None, **RPN),
    "Faster R-CNN VGG": FasterRCNNOptions(backbone=VGGOptions(depth=11), neck=None, pooling=POOL, **RPN),
    "Cascade R-CNN": CascadeRCNNOptions(backbone=BODY, **RPN),
    "Cascade R-CNN with masks": CascadeRCNNOptions(backbone=BODY, masks=MaskHeadOptions(), **RPN),
    "Mask R-CNN": MaskRCNNOptions(backbone=BODY, **RPN),
    "Mask R-CNN C4": MaskRCNNOptions(backbone=ResNetOptions(50), neck=None, masks=C4_MASKS, **RPN),
    "Fast R-CNN": FastRCNNOptions(backbone=BODY),
    "Fast R-CNN AlexNet": FastRCNNOptions(backbone=AlexNetOptions(), neck=None),
    "R-CNN": RCNNOptions(backbone=BODY),
    "YOLOX": YOLOXOptions(backbone=CSPDarknetOptions(**NANO), neck=PAFPNOptions(**NANO), depthwise=True),
}
CLASSIFIERS = {
    "LeNet": (LeNetOptions(), 32),
    "AlexNet": (AlexNetOptions(), 128),
    "VGG": (VGGOptions(depth=11), 64),
    "GoogLeNet": (GoogLeNetOptions(), 128),
    "ResNet": (BATCH_NORM, 64),
}


def batch_of(masks: bool, given: bool) -> Batch:
    """Return a batch in page-locked memory."""
    boxes = torch.tensor([[8.0, 8, 70, 90]]).expand(2, 8, 4).contiguous()
    valid = (torch.arange(8) < 2).expand(2, 8).contiguous()
    labels = torch.zeros(2, 8, dtype=torch.int64)
    grids = torch.full((2, 8, 56, 56), 255, dtype=torch.uint8) if masks else None
    return Batch(
        Images(torch.zeros(2, 3, 96, 128, dtype=torch.uint8), torch.tensor([[96, 128], [90, 120]])),
        Targets(boxes, labels, valid, torch.zeros_like(valid), grids),
        torch.arange(2),
        torch.ones(2, 2),
        Proposals(boxes, valid.float(), valid) if given else None,
        torch.tensor(True),
    ).pin_memory()


def train(model: torch.nn.Module, batch: Batch | ClassificationBatch, half: bool) -> None:
    """Take a step like that of `TrainingModule`."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = (torch.optim.AdamW if half else torch.optim.SGD)(parameters, 1e-8, fused=True)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    for strict in (False, True):  # the first step creates constants, and compiles Triton's kernels
        torch.cuda.set_sync_debug_mode("error" if strict else "default")
        there = batch.to("cuda", non_blocking=True)
        with torch.autocast("cuda", torch.float16, enabled=half):
            losses = model.loss(there)
        torch.stack(list(losses.values())).sum().backward()
        norm = clip_grad_norm_(parameters, 10.0)
        optimizer.found_inf = (~norm.isfinite()).float()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
    torch.cuda.set_sync_debug_mode("default")


def detect(model: torch.nn.Module, batch: Batch) -> None:
    """Validate, and detect with the prepared model."""
    networks = model.eval(), prepare(model), prepare(model, "bf16")
    for strict in (False, True):
        torch.cuda.set_sync_debug_mode("error" if strict else "default")
        there = batch.to("cuda", non_blocking=True)
        networks[0].validate(there)
        for network in networks:
            network.detect(there.images, there.proposals)
    torch.cuda.set_sync_debug_mode("default")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    for name, options in DETECTORS.items():
        batch = batch_of(options.predicts_masks, options.proposals == "given")
        for half, deterministic in ((False, False), (True, False), (False, True)):
            if deterministic and name in ("Faster R-CNN VGG", "R-CNN"):
                continue  # torchvision's RoIPool has no fixed order of sums; Inductor compiles its RoIAlign of crops
            torch.use_deterministic_algorithms(deterministic)
            model = build_detector(options, CLASSES).to("cuda").train()
            train(model, batch, half)
        torch.use_deterministic_algorithms(False)
        detect(model, batch)
        print(name, flush=True)
    for name, (backbone, side) in CLASSIFIERS.items():
        model = Classifier(CLASSES, ClassifierOptions(backbone=backbone)).to("cuda").train()
        pixels = torch.zeros(2, 3, side, side, dtype=torch.uint8)
        batch = ClassificationBatch(pixels, torch.zeros(2, dtype=torch.int64), torch.arange(2))
        train(model, batch.pin_memory(), half=False)
        with torch.no_grad():
            model.eval()(pixels.cuda())
        print(name, flush=True)
