import torch

from detect.backbones import FeatureInfo, Pixels


def test_the_map_is_the_pixels():
    backbone = Pixels()
    for images in (0, 1, 2):
        pixels = torch.randn(images, 3, 5, 7)
        (features,) = backbone(pixels).values()
        assert torch.equal(features, pixels)
    assert backbone.levels == {"pixels": FeatureInfo(channels=3, stride=1)}


def test_nothing_is_trained_and_the_normalisation_travels_in_the_state():
    backbone = Pixels()
    assert not list(backbone.parameters())
    torch.testing.assert_close(backbone.state_dict()["mean"] / 255, torch.tensor([0.485, 0.456, 0.406]))
    torch.testing.assert_close(backbone.state_dict()["std"] / 255, torch.tensor([0.229, 0.224, 0.225]))
