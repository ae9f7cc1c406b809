"""YOLOX: decoding, losses, detections and training."""

import math

import pytest
import torch
from torch.nn import functional as F

from detect.backbones import CSPDarknetOptions, PAFPNOptions, ResNetOptions
from detect.models import YOLOX, YOLOXOptions
from detect.models.decoupled_head import RawPredictions
from detect.models.yolox import cells_of, decode, encode, inside_crowd
from detect.structures import Batch, Images, Targets

NANO = YOLOXOptions(
    backbone=CSPDarknetOptions(width=0.25, depthwise=True),
    neck=PAFPNOptions(width=0.25, depthwise=True),
    depthwise=True,
)
C = 3


def maps(height, width):
    return [torch.zeros(1, 1, height // stride, width // stride) for stride in (8, 16, 32)]


def targets_of(boxes, labels=None, crowd=None, padding=2):
    """Return the targets of one image, with padding."""
    count = len(boxes)
    padded = torch.zeros(1, count + padding, 4)
    padded[0, :count] = torch.tensor(boxes).view(count, 4)
    flags = torch.zeros(2, 1, count + padding, dtype=torch.bool)
    flags[0, :, :count] = True
    flags[1, 0, :count] = torch.tensor(crowd or [False] * count)
    padded_labels = torch.zeros(1, count + padding, dtype=torch.int64)
    padded_labels[0, :count] = torch.tensor(labels or [0] * count)
    return Targets(padded, padded_labels, *flags)


def batch_of(targets, size=(64, 96), closing=None, count=1):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8, generator=generator)
    closing = None if closing is None else torch.tensor(closing)
    sizes = torch.tensor(size).expand(count, -1)
    return Batch(Images(pixels, sizes), targets, torch.arange(count), torch.ones(count, 2), closing=closing)


def perfect(cells, boxes, labels):
    """Return outputs that put each box at the cell of level 1 below its centre, and nothing elsewhere."""
    count = len(cells.strides)
    raw = RawPredictions(torch.full((1, count, C), -20.0), torch.zeros(1, count, 4), torch.full((1, count), -20.0))
    raw.boxes[..., 2:] = -5.0
    for box, label in zip(torch.tensor(boxes), labels, strict=True):
        centre = (box[:2] + box[2:]) / 2
        distances = (cells.centres - centre).abs().amax(dim=1) + 1e3 * (cells.strides != 16)
        cell = int(distances.argmin())
        raw.boxes[0, cell] = encode(box.expand(1, count, 4), cells)[0, cell]
        raw.classes[0, cell, label] = raw.objectness[0, cell] = 20.0
    return raw


def test_cells_are_listed_level_by_level_row_by_row():
    cells = cells_of(maps(64, 96), (8, 16, 32))
    assert len(cells.strides) == 8 * 12 + 4 * 6 + 2 * 3
    assert cells.corners[:2].tolist() == [[0, 0], [8, 0]] and cells.corners[12].tolist() == [0, 8]
    assert cells.corners[-1].tolist() == [64, 32] and cells.centres[-1].tolist() == [80, 48]
    assert cells.strides[[0, 95, 96, 119, 120]].tolist() == [8, 8, 16, 16, 32]


def test_decoded_boxes_by_hand():
    cells = cells_of(maps(64, 96), (8, 16, 32))
    raw = torch.zeros(1, len(cells.strides), 4)
    raw[0, 13] = torch.tensor([0.5, 0.25, math.log(2), math.log(3)])  # the cell at (8, 8) of stride 8
    boxes = decode(raw, cells)
    assert boxes[0, 13].tolist() == pytest.approx([12 - 8, 10 - 12, 12 + 8, 10 + 12])
    assert boxes[0, 0].tolist() == [-4, -4, 4, 4]
    assert torch.allclose(encode(boxes, cells), raw, atol=1e-6)
    raw[0, 0, 2] = 1e9
    assert decode(raw, cells).isfinite().all()


def test_cells_inside_of_crowds():
    cells = cells_of(maps(64, 96), (8, 16, 32))
    inside = inside_crowd(cells, targets_of([(0, 0, 20, 8), (30, 30, 90, 60)], crowd=[True, False]))
    assert cells.centres[inside[0]].tolist() == [[4, 4], [12, 4]]  # (8, 8) is on the lower side, which is outside


def test_losses_of_perfect_outputs_are_zero_but_for_other_cells(monkeypatch):
    boxes, labels = [(10.0, 10, 40, 44), (50.0, 20, 90, 60)], [1, 2]
    model = YOLOX(C, NANO)
    cells = cells_of(maps(64, 96), (8, 16, 32))
    raw = perfect(cells, boxes, labels)
    losses = model._loss(raw, cells, batch_of(targets_of(boxes, labels), closing=True))
    # Each object gets one cell, because only one predicted box overlaps it much.
    assert {name: round(float(loss), 4) for name, loss in losses.items()} == dict.fromkeys(
        ("boxes", "objectness", "classes", "raw_boxes"), 0.0
    )
    raw.objectness[0, 5] = 20.0  # one wrong cell: 20, divided by two positives
    assert float(model._loss(raw, cells, batch_of(targets_of(boxes, labels)))["objectness"]) == pytest.approx(
        10, abs=1e-4
    )
    crowd = targets_of(
        [*boxes, tuple(cells.centres[5].repeat(2).tolist() + torch.tensor([-1, -1, 1, 1]).numpy())],
        [*labels, 0],
        [False, False, True],
    )
    assert float(model._loss(raw, cells, batch_of(crowd))["objectness"]) == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("closing", [None, False, True])
def test_the_loss_of_raw_boxes_is_for_the_closing_epochs(closing):
    model = YOLOX(C, NANO).eval()
    losses = model.loss(batch_of(targets_of([(10, 10, 40, 44)]), closing=closing))
    assert ("raw_boxes" in losses) == (closing is not None)
    assert closing is None or (losses["raw_boxes"] > 0) == closing
    sum(losses.values()).backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


def test_an_image_without_objects_has_only_a_loss_of_objectness():
    losses = YOLOX(C, NANO).eval().loss(batch_of(targets_of([], padding=0), closing=True))
    assert losses["objectness"] > 0
    assert losses["boxes"] == losses["classes"] == losses["raw_boxes"] == 0


def test_an_image_without_objects_counts_as_ten_cells():
    model = YOLOX(C, NANO).eval()
    one, none = targets_of([(10, 10, 40, 44)]), targets_of([], padding=3)
    both = Targets(
        *(torch.cat([getattr(one, name), getattr(none, name)]) for name in ("boxes", "labels", "valid", "crowd"))
    )
    raw, cells = model._predict(batch_of(one).images)
    boxes = decode(raw.boxes, cells)
    count = int(model._assign(raw, boxes, cells, one).positive.sum())
    alone = model._loss(raw, cells, batch_of(one))["boxes"]
    twice = RawPredictions(*(torch.cat([part, part]) for part in raw))
    together = model._loss(twice, cells, batch_of(both, count=2))["boxes"]
    torch.testing.assert_close(together, alone * count / (count + 10))


def test_detections_of_perfect_outputs():
    boxes, labels = [(10.0, 10, 40, 44), (50.0, 20, 90, 60)], [1, 2]
    cells = cells_of(maps(64, 96), (8, 16, 32))
    raw = perfect(cells, boxes, labels)
    images = Images(torch.zeros(1, 3, 64, 96), torch.tensor([[64, 80]]))
    found = YOLOX(C, NANO)._detect(raw, cells, images)
    assert found.valid.sum() == 2 and found.scores[0, :2].tolist() == pytest.approx([1, 1])
    at = {label: box for label, box in zip(found.labels[0].tolist(), found.boxes[0].tolist(), strict=True) if any(box)}
    assert at == {1: pytest.approx([10, 10, 40, 44], abs=1e-4), 2: pytest.approx([50, 20, 80, 60], abs=1e-4)}  # clipped


def test_a_cell_has_one_class():
    cells = cells_of(maps(64, 96), (8, 16, 32))
    raw = perfect(cells, [(10.0, 10, 40, 44)], [1])
    raw.classes[..., 2] = torch.where(raw.classes[..., 1] > 0, 19.0, -20.0)  # nearly as sure
    found = YOLOX(C, NANO)._detect(raw, cells, Images(torch.zeros(1, 3, 64, 96), torch.tensor([[64, 96]])))
    assert found.labels[found.valid].tolist() == [1]


def test_padding_of_the_canvas_does_not_change_the_detections():
    torch.manual_seed(0)
    model = YOLOX(C, NANO).eval()
    batch = batch_of(targets_of([]))
    grey = torch.full((1, 3, 64, 96), 114, dtype=torch.uint8)
    grey[:, :, :40, :50] = batch.images.pixels[:, :, :40, :50]
    sizes = torch.tensor([[40, 50]])
    noisy = torch.where(grey == 114, batch.images.pixels, grey)
    noisy[:, :, :40, :50] = grey[:, :, :40, :50]
    for name in ("boxes", "scores"):
        one, other = (getattr(model.detect(Images(pixels, sizes)), name) for pixels in (grey, noisy))
        assert torch.equal(one, other)  # pixels beyond the image are grey for the network


def test_any_body_with_the_strides_will_do():
    options = YOLOXOptions(backbone=ResNetOptions(18, norm="batch", train_stages=5), neck=PAFPNOptions(width=0.25))
    losses = YOLOX(C, options).loss(batch_of(targets_of([(10, 10, 40, 44)])))
    assert all(loss.isfinite() for loss in losses.values())


def test_the_loss_is_one_graph(unchecked):
    torch.manual_seed(0)
    model = YOLOX(C, NANO).eval()
    batch = batch_of(targets_of([(10, 10, 40, 44), (50, 20, 90, 60)]), closing=True)
    compiled = torch.compile(model.loss, fullgraph=True, backend="eager")
    for name, loss in model.loss(batch).items():
        assert torch.equal(compiled(batch)[name], loss)


def test_it_learns_one_image():
    torch.manual_seed(0)
    model = YOLOX(C, NANO).train()
    targets = targets_of([(10, 10, 40, 44), (50, 20, 90, 60)], [1, 2])
    batch = batch_of(
        Targets(
            *(
                value.expand(2, *value.shape[1:])
                for value in (targets.boxes, targets.labels, targets.valid, targets.crowd)
            )
        ),
        count=2,
    )
    optimizer = torch.optim.AdamW(model.parameters(), 0.003)
    first = None
    for _ in range(60):
        loss = sum(model.loss(batch).values())
        first = first or loss.item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.3 * first
    found = model.detect(batch.images)  # with the statistics of the batch
    best = found.boxes[0, :2][found.labels[0, :2].argsort()]
    assert F.l1_loss(best, targets.boxes[0, :2]) < 3
