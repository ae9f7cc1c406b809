import errno

import pytest
import torch

from detect.checkpoint import save_torch
from detect.errors import UserError
from detect.training.checkpoints import AtomicCheckpointIO


def test_a_checkpoint_comes_back(tmp_path):
    path = tmp_path / "new" / "a.ckpt"
    AtomicCheckpointIO().save_checkpoint({"x": torch.arange(3)}, path)
    AtomicCheckpointIO().save_checkpoint({"x": torch.arange(4)}, path)
    assert torch.load(path, weights_only=True)["x"].tolist() == [0, 1, 2, 3]
    assert [file.name for file in path.parent.iterdir()] == ["a.ckpt"]


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), UserError),
        (RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"), UserError),
        (RuntimeError("a bug"), RuntimeError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_a_write_that_fails_midway_leaves_the_former_file_and_nothing_else(tmp_path, monkeypatch, failure, expected):
    path = tmp_path / "a.ckpt"
    AtomicCheckpointIO().save_checkpoint({"x": 1}, path)

    def fail(content, file):
        file.write(b"half of a checkp")
        raise failure

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(expected) as caught:
        AtomicCheckpointIO().save_checkpoint({"x": 2}, path)
    if expected is UserError:
        assert str(caught.value).startswith(f"{path}: ") and "free some space, then" in str(caught.value)
        assert "\n" not in str(caught.value)
    assert [file.name for file in tmp_path.iterdir()] == ["a.ckpt"]
    assert torch.load(path, weights_only=True) == {"x": 1}


def test_a_full_disk_is_an_error_of_the_system_for_all_who_save(tmp_path, monkeypatch):
    """torch's writer turns it into a RuntimeError, which would be a traceback."""

    def fail(content, file):
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="the disk is full or not writable"):
        save_torch({"x": 2}, tmp_path / "a.ckpt")
    assert not list(tmp_path.iterdir())
