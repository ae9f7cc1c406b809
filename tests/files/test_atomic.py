"""Permissions of files that are written atomically, and the names in errors while they are written."""

import os
import stat
import sys
from pathlib import Path

import pytest

from detect.errors import UserError
from detect.files.atomic import atomic_write, new_folder, write_text

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no permissions of this kind")


@pytest.fixture
def umask():
    """Return a function that sets the process's umask for this test."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


def mode(path: Path) -> str:
    return oct(stat.S_IMODE(path.stat().st_mode))


@pytest.mark.parametrize(("mask", "expected"), [(0o022, "0o644"), (0o002, "0o664"), (0o077, "0o600")])
def test_a_file_has_the_permissions_of_a_new_file(tmp_path, umask, mask, expected):
    umask(mask)
    write_text(tmp_path / "a.json", "[]")
    with atomic_write(tmp_path / "b.safetensors") as draft:
        draft.touch(mode=0o600)  # as safetensors does
    assert [mode(tmp_path / name) for name in ("a.json", "b.safetensors")] == [expected, expected]
    assert {path.name for path in tmp_path.iterdir()} == {"a.json", "b.safetensors"}


def test_a_user_error_names_the_target_and_not_the_draft(tmp_path):
    out = tmp_path / "a.onnx"
    with pytest.raises(UserError) as caught, atomic_write(out) as draft:
        raise UserError(f"{draft}: not an ONNX model; export it again")
    assert str(caught.value) == f"{out}: not an ONNX model; export it again"
    with pytest.raises(UserError, match=r"^another\.jpg: is missing$"), atomic_write(out):
        raise UserError("another.jpg: is missing")


def test_a_system_error_names_the_target_and_not_the_draft(tmp_path):
    with pytest.raises(IsADirectoryError) as caught, atomic_write(tmp_path / "a.json") as draft:
        draft.mkdir()
        draft.write_text("")
    assert caught.value.filename == str(tmp_path / "a.json")
    (tmp_path / "taken" / "file").mkdir(parents=True)
    with pytest.raises(OSError, match="directory") as taken:
        write_text(tmp_path / "taken", "[]")
    assert taken.value.filename == str(tmp_path / "taken")
    with pytest.raises(FileNotFoundError) as missing, new_folder(tmp_path / "set") as folder:
        (folder / "images" / "1.jpg").touch()
    assert missing.value.filename == str(tmp_path / "set" / "images" / "1.jpg")
    (tmp_path / "other").write_text("")
    with pytest.raises(FileExistsError) as other, atomic_write(tmp_path / "a.json"):
        (tmp_path / "other").mkdir()
    assert other.value.filename == str(tmp_path / "other")
