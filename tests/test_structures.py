from dataclasses import FrozenInstanceError, fields, replace

import jaxtyping
import pytest
import torch

from detect.structures import Batch, Detections, Images, Proposals, Samples, Targets, to_file_pixels


def make_batch(images: int = 2, ground_truths: int = 3) -> Batch:
    valid = torch.ones(images, ground_truths, dtype=torch.bool)
    boxes = torch.rand(images, ground_truths, 4)
    masks = torch.zeros(images, ground_truths, 56, 56, dtype=torch.uint8)
    return Batch(
        images=Images(torch.zeros(images, 3, 32, 64, dtype=torch.uint8), torch.full((images, 2), 32)),
        targets=Targets(boxes, torch.zeros(images, ground_truths, dtype=torch.int64), valid, ~valid, masks),
        ids=torch.arange(images),
        scales=torch.ones(images, 2),
    )


def make_detections(images: int = 2, detections: int = 5) -> Detections:
    shape = (images, detections)
    return Detections(
        torch.rand(*shape, 4),
        torch.rand(shape),
        torch.zeros(shape, dtype=torch.int64),
        torch.ones(shape, dtype=torch.bool),
    )


NONE = torch.zeros(2, 5, dtype=torch.int64)


@pytest.mark.parametrize("images", [0, 1, 2])
def test_length_is_the_number_of_images(images):
    assert len(make_batch(images)) == images


def test_moving_a_batch_moves_every_tensor():
    batch = make_batch().to("meta")
    assert batch.proposals is None
    assert {batch.ids.device.type, batch.scales.device.type} == {"meta"}
    for structure in (batch.images, batch.targets):
        assert {getattr(structure, field.name).device.type for field in fields(structure)} == {"meta"}


@pytest.mark.parametrize("with_proposals", [True, False])
def test_detections_take_their_proposals_along(with_proposals):
    detections, valid = make_detections(), torch.ones(2, 7, dtype=torch.bool)
    assert detections.proposals is None
    if with_proposals:
        detections = replace(detections, proposals=Proposals(torch.rand(2, 7, 4), torch.rand(2, 7), valid))
    moved = detections.to("meta")
    assert (moved.proposals is not None) == with_proposals
    structures = (moved, moved.proposals) if with_proposals else (moved,)
    for structure in structures:
        tensors = [getattr(structure, field.name) for field in fields(structure)]
        assert {tensor.device.type for tensor in tensors if isinstance(tensor, torch.Tensor)} == {"meta"}


def test_moving_keeps_values_and_dtypes():
    batch = make_batch()
    moved = batch.to("cpu", non_blocking=True)
    for field in fields(Targets):
        torch.testing.assert_close(getattr(moved.targets, field.name), getattr(batch.targets, field.name))
    assert moved.images.pixels.dtype == torch.uint8


def test_structures_do_not_change():
    with pytest.raises(FrozenInstanceError):
        make_batch().ids = torch.zeros(2)
    with pytest.raises((AttributeError, TypeError)):
        make_batch().anything = 1  # no attributes but the fields


@pytest.mark.parametrize(
    ("structure", "values"),
    [
        (Images, (torch.zeros(2, 3, 8, 8), torch.zeros(1, 2, dtype=torch.int64))),
        (Images, (torch.zeros(2, 1, 8, 8), torch.zeros(2, 2, dtype=torch.int64))),
        (Proposals, (torch.zeros(2, 5, 4), torch.zeros(2, 4), torch.ones(2, 5, dtype=torch.bool))),
        (Detections, (torch.zeros(2, 5, 4), torch.zeros(2, 5), torch.zeros(2, 5), torch.ones(2, 5, dtype=torch.bool))),
        (Samples, (torch.zeros(2, 5, 4), NONE, NONE.float(), torch.zeros(2, 5, 4), NONE.bool())),
        (Samples, (torch.zeros(2, 5, 4), NONE, NONE[:, :4], torch.zeros(2, 5, 4), NONE.bool())),
        (Samples, (torch.zeros(2, 5, 4), NONE, NONE, torch.zeros(2, 5, 2), NONE.bool())),
    ],
)
def test_shapes_and_dtypes_are_part_of_the_types(structure, values):
    with pytest.raises(jaxtyping.TypeCheckError):
        structure(*values)


@pytest.mark.parametrize("detections", [0, 1, 5])
def test_boxes_return_to_the_pixels_of_their_files(detections):
    original = make_detections(2, detections)
    scales = torch.tensor([[0.5, 0.25], [2.0, 1.0]])
    returned = to_file_pixels(original, scales)
    factors = torch.tensor([[2.0, 4, 2, 4], [0.5, 1, 0.5, 1]])
    torch.testing.assert_close(returned.boxes, original.boxes * factors[:, None])
    assert (
        returned.scores is original.scores and returned.labels is original.labels and returned.valid is original.valid
    )


def test_masks_do_not_depend_on_the_size_of_the_file():
    detections = replace(make_detections(), masks=torch.rand(2, 5, 28, 28))
    assert to_file_pixels(detections, torch.tensor([[0.5, 0.25], [2.0, 1.0]])).masks is detections.masks
    assert detections.to("meta").masks.device.type == "meta" and make_detections().to("meta").masks is None
