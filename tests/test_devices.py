import pytest
import torch

from detect.devices import choose_device


@pytest.mark.parametrize(
    ("rank", "count", "expected"),
    [(None, 2, "cuda"), ("0", 2, "cuda:0"), ("1", 2, "cuda:1"), ("3", 1, "cuda:0")],
    ids=["alone", "first", "second", "shown only its own"],
)
def test_each_process_has_its_own_device(monkeypatch, rank, count, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    assert choose_device() == torch.device(expected) and choose_device("cpu") == torch.device("cpu")
