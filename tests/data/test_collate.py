from dataclasses import replace

import numpy as np
import pytest
import torch

from detect.data.collate import Sample, collate
from detect.errors import UserError


def sample(id: int, height: int, width: int, objects: int, canvas=(32, 64)) -> Sample:
    return Sample(
        id=id,
        image=np.full((height, width, 3), id, np.uint8),
        boxes=np.arange(4 * objects, dtype=np.float32).reshape(-1, 4),
        labels=np.arange(objects),
        crowd=np.arange(objects) % 2 == 1,
        scale=(0.5, 0.25),
        canvas=canvas,
    )


def test_images_lie_in_the_upper_left_corner_of_the_canvas():
    batch = collate([sample(7, 20, 64, 0), sample(9, 32, 10, 0)], max_objects=4)
    assert batch.images.pixels.shape == (2, 3, 32, 64) and batch.images.pixels.dtype == torch.uint8
    assert (batch.images.pixels[0, :, :20] == 7).all() and (batch.images.pixels[0, :, 20:] == 0).all()
    assert (batch.images.pixels[1, :, :, :10] == 9).all() and (batch.images.pixels[1, :, :, 10:] == 0).all()
    assert batch.images.sizes.tolist() == [[20, 64], [32, 10]]
    assert batch.ids.tolist() == [7, 9] and batch.scales.tolist() == [[0.5, 0.25]] * 2 and len(batch) == 2


def test_pixels_are_channels_last():
    pixels = collate([sample(1, 32, 64, 0), sample(2, 32, 64, 0)], max_objects=4).images.pixels
    assert pixels.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("objects", "length"), [(0, 8), (1, 8), (8, 8), (9, 32), (32, 32), (33, 128)])
def test_truths_are_padded_to_few_lengths(objects, length):
    targets = collate([sample(1, 8, 8, objects), sample(2, 8, 8, 0)], max_objects=33).targets
    assert targets.boxes.shape == (2, length, 4) and targets.boxes.dtype == torch.float32
    assert targets.valid.sum(dim=1).tolist() == [objects, 0]
    assert targets.boxes[0, :objects].flatten().tolist() == list(range(4 * objects))
    assert targets.labels[0, :objects].tolist() == list(range(objects))
    assert targets.crowd[0, :objects].tolist() == [place % 2 == 1 for place in range(objects)]
    assert not targets.crowd[~targets.valid].any() and targets.boxes.isfinite().all()


def test_too_many_objects_are_a_mistake_that_names_the_image():
    with pytest.raises(UserError, match=r"^image 3: 5 objects, but data.max_objects is 4; raise it$"):
        collate([sample(2, 8, 8, 4), sample(3, 8, 8, 5)], max_objects=4)


def test_masks_are_padded_like_their_boxes():
    one, other, empty = (replace(sample(id, 8, 8, n), masks=np.full((n, 56, 56), 10 * id, np.uint8))
                         for id, n in ((1, 3), (2, 1), (3, 0)))  # fmt: skip
    masks = collate([one, other, empty], max_objects=4).targets.masks
    assert masks.shape == (3, 8, 56, 56) and masks.dtype == torch.uint8
    assert masks.amax(dim=(2, 3)).tolist() == [[10, 10, 10, *[0] * 5], [20, *[0] * 7], [0] * 8]
    assert torch.equal(masks.amax(dim=(2, 3)), masks.amin(dim=(2, 3)))
    assert collate([empty], max_objects=4).targets.masks.shape == (1, 8, 56, 56)


def test_without_masks_a_batch_has_none():
    assert collate([sample(1, 8, 8, 2), sample(2, 8, 8, 0)], max_objects=4).targets.masks is None
