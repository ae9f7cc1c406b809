"""Names and links that lead out of a data folder."""

from pathlib import Path

import pytest

from detect.files.fence import inside


@pytest.mark.parametrize(
    ("name", "good"),
    [
        ("a.jpg", True),
        ("b/a.jpg", True),
        ("./a.jpg", True),
        ("../a.jpg", False),
        ("b/../a.jpg", False),
        ("/a.jpg", False),
    ],
)
def test_inside(name, good):
    root = Path("data")
    assert inside(root, root / "images", name) == (root / "images" / name if good else None)


def test_an_absolute_name_is_inside_whatever_the_root_is_called(tmp_path, monkeypatch):
    real, link = tmp_path / "real", tmp_path / "link"
    (real / "images").mkdir(parents=True)
    link.symlink_to(real)
    monkeypatch.chdir(real)
    for root in (real, link, Path("../real"), Path("../link"), Path()):
        for name in (real / "images" / "a.jpg", root.absolute() / "images" / "a.jpg"):
            found = inside(root, root / "images", str(name))
            assert found == (None if ".." in name.parts else root / "images" / "a.jpg")
        assert inside(root, root, str(tmp_path / "a.jpg")) is None
