import pytest
import torch

from detect.models.sampler import Sampler


def labels_of(positive: int, negative: int, ignored: int) -> torch.Tensor:
    labels = torch.tensor([1] * positive + [0] * negative + [-1] * ignored)
    return labels[torch.randperm(len(labels))]


@pytest.mark.parametrize(
    ("positive", "negative", "ignored", "drawn"),
    [
        (100, 100, 0, (4, 12)),  # enough of both
        (2, 100, 50, (2, 14)),  # background fills up
        (0, 100, 3, (0, 16)),
        (100, 3, 0, (4, 3)),  # objects do not
        (100, 0, 9, (4, 0)),
        (0, 0, 40, (0, 0)),
        (3, 5, 1, (3, 5)),  # less than asked for
        (1, 0, 0, (1, 0)),
    ],
)
def test_counts_are_exact(positive, negative, ignored, drawn):
    labels = torch.stack([labels_of(positive, negative, ignored) for _ in range(3)])
    indices, valid = Sampler(16, 0.25)(labels)
    assert indices.shape == valid.shape == (3, min(16, positive + negative + ignored))
    for row in range(3):
        places = indices[row, valid[row]]
        kinds = labels[row, places].tolist()
        assert (kinds.count(1), kinds.count(0)) == drawn and -1 not in kinds
        assert kinds == sorted(kinds, reverse=True)  # objects first
        assert len(set(places.tolist())) == len(places)


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_all_of_one_kind(fraction):
    indices, valid = Sampler(8, fraction)(labels_of(20, 20, 0)[None])
    assert valid.all() and indices.shape == (1, 8)
    labels = torch.tensor([[1] * 20 + [0] * 20])
    indices, valid = Sampler(8, fraction)(labels)
    assert (labels[0, indices[0]] == int(fraction)).all()


def test_no_boxes():
    indices, valid = Sampler(8, 0.5)(torch.zeros(2, 0, dtype=torch.int64))
    assert indices.shape == valid.shape == (2, 0)


def test_draws_are_uniform():
    labels = torch.tensor([[1] * 10 + [0] * 20 + [-1] * 5]).expand(8000, -1)
    indices, valid = Sampler(8, 0.5)(labels)
    assert valid.all()
    share = torch.bincount(indices.flatten(), minlength=35) / 8000
    torch.testing.assert_close(share[:10], torch.full((10,), 4 / 10), atol=0.025, rtol=0)
    torch.testing.assert_close(share[10:30], torch.full((20,), 4 / 20), atol=0.025, rtol=0)
    assert not share[30:].any()


def test_the_seed_decides():
    labels = labels_of(50, 50, 0)[None]
    torch.manual_seed(1)
    first, _ = Sampler(8, 0.5)(labels)
    second, _ = Sampler(8, 0.5)(labels)
    torch.manual_seed(1)
    again, _ = Sampler(8, 0.5)(labels)
    assert torch.equal(first, again) and not torch.equal(first, second)
