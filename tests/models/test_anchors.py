import pytest
import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator as Torchvisions
from torchvision.models.detection.image_list import ImageList

from detect.models.anchors import AnchorGenerator

STRIDES = [4, 8, 16, 32, 64]
SIZES = [(32,), (64,), (128,), (256,), (512,)]


def maps(height: int, width: int, strides: list[int]) -> list[torch.Tensor]:
    return [torch.zeros(2, 1, -(-height // stride), -(-width // stride)) for stride in strides]


def test_nine_shapes_by_hand():
    # Ren et al. 2015, table 1: for each ratio three areas; 2:1 of 128² is 181 × 91, 1:2 is 91 × 181.
    anchors = AnchorGenerator([16], [(128, 256, 512)], (0.5, 1.0, 2.0))(maps(16, 16, [16]))
    sides = (anchors[:, 2:] - anchors[:, :2]).tolist()
    expected = [
        [182, 90],
        [362, 182],
        [724, 362],
        [128, 128],
        [256, 256],
        [512, 512],
        [90, 182],
        [182, 362],
        [362, 724],
    ]
    assert sides == expected
    assert torch.equal(anchors[:, :2], -anchors[:, 2:])  # around the corner of the first cell


def test_shapes_keep_area_and_ratio():
    anchors = AnchorGenerator([16], [(128, 256)], (0.5, 2.0), rounded=False)(maps(16, 16, [16]))
    width, height = (anchors[:, 2:] - anchors[:, :2]).unbind(-1)
    torch.testing.assert_close((width * height).sqrt(), torch.tensor([128.0, 256, 128, 256]))
    torch.testing.assert_close(height / width, torch.tensor([0.5, 0.5, 2, 2]))


def test_order_is_level_row_column_shape():
    generator = AnchorGenerator([4, 8], [(8,), (16,)], (1.0,), offset=0.5)
    anchors = generator(maps(8, 16, [4, 8]))
    centres = ((anchors[:, :2] + anchors[:, 2:]) / 2).tolist()
    fine = [[x, y] for y in (2, 6) for x in (2, 6, 10, 14)]
    assert centres == [*fine, [4, 4], [12, 4]]
    assert (anchors[:, 2] - anchors[:, 0]).tolist() == [8] * 8 + [16] * 2


@pytest.mark.parametrize(("height", "width"), [(64, 64), (128, 192), (96, 160), (800, 1088)])
@pytest.mark.parametrize(("strides", "sizes"), [(STRIDES, SIZES), ([16], [(32, 64, 128, 256, 512)])])
def test_anchors_are_torchvisions(strides, sizes, height, width):
    features = maps(height, width, strides)
    theirs = Torchvisions(tuple(sizes), ((0.5, 1.0, 2.0),) * len(sizes))
    expected = theirs(ImageList(torch.zeros(2, 3, height, width), [(height, width)] * 2), features)[0]
    assert torch.equal(AnchorGenerator(strides, sizes, fitted=True)(features), expected)
    if height % max(strides) == width % max(strides) == 0:
        assert torch.equal(AnchorGenerator(strides, sizes)(features), expected)


def test_mirrored_maps_have_mirrored_anchors():
    """This is exact if anchors stand in the middle of their cells and the canvas is a multiple of the stride."""
    anchors = AnchorGenerator([16], [(32, 64)], offset=0.5)(maps(64, 96, [16])).view(4, 6, 6, 4)
    mirrored = torch.stack([96 - anchors[..., 2], anchors[..., 1], 96 - anchors[..., 0], anchors[..., 3]], dim=-1)
    assert torch.equal(anchors.flip(1), mirrored)


def test_anchors_are_no_part_of_a_checkpoint():
    assert not AnchorGenerator(STRIDES, SIZES).state_dict()


def test_levels_sizes_and_strides_must_agree():
    with pytest.raises(ValueError, match="5 levels need as many"):
        AnchorGenerator(STRIDES, SIZES[:3])
    with pytest.raises(ValueError, match="same number of anchor sizes"):
        AnchorGenerator([4, 8], [(32,), (64, 128)])
