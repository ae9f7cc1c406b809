"""WIDER FACE: faces of all images in one file, images without faces, invalid faces."""

import pytest
from PIL import Image

from detect.data.read import read, splits
from detect.errors import UserError

TEXT = """0--Parade/a b.jpg
2
4 5 20 15 0 0 0 0 0 0
1 1 3 3 0 0 0 1 0 0
1--Riot/c.jpg
0
0 0 0 0 0 0 0 0 0 0
"""


@pytest.fixture
def root(tmp_path):
    """Data folder as it is unpacked."""
    for name in ("0--Parade/a b.jpg", "1--Riot/c.jpg"):
        path = tmp_path / "WIDER_train" / "images" / name
        path.parent.mkdir(parents=True)
        Image.new("RGB", (40, 30)).save(path)
    (tmp_path / "wider_face_split").mkdir()
    (tmp_path / "wider_face_split" / "wider_face_train_bbx_gt.txt").write_text(TEXT)
    return tmp_path


def test_faces(root):
    assert splits(root) == ("train",)
    dataset = read(root, "train")
    first, second = dataset.records
    assert (dataset.format, dataset.classes) == ("widerface", ("face",))
    assert first.path.name == "a b.jpg" and first.boxes.tolist() == [[4, 5, 24, 20]] and len(second.boxes) == 0
    assert [(defect.rule, defect.detail) for defect in dataset.repaired] == [
        ("ignored-region", "line 4: an invalid face")
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("4 5 x 15 0 0 0 0 0 0\n", "line 8 is neither an image nor the ten numbers of a face: 4 5 x 15"),
        ("2--x/d.jpg\n0\n", r"1 × missing-image, first .*d\.jpg"),
        ("1--Riot/c.jpg\n0\n", r"duplicate-image, first .*gt\.txt: c\.jpg is there twice"),
        ("../../x.jpg\n0\n", "path-outside-root"),
        ("\udcff\n", "it is not text"),
    ],
)
def test_damaged_files(root, text, message):
    path = root / "wider_face_split" / "wider_face_train_bbx_gt.txt"
    path.write_text(TEXT + text, errors="surrogateescape")
    with pytest.raises(UserError, match=message):
        read(root, "train")
