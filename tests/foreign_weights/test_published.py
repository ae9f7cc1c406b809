"""Downloads of weights from a server on this machine."""

import hashlib

import pytest

from detect.cli import main
from detect.errors import UserError
from detect.files.download import RemoteFile
from detect.foreign_weights.published import Published, download_weights, published_weights

CONTENT = b"weights" * 20_000


@pytest.fixture
def published(server):
    server.files["net-x.pth"] = CONTENT
    digest = hashlib.sha256(CONTENT).hexdigest()
    remote = RemoteFile(url=f"{server.url}/net-x.pth", file="net-x.pth", checksum=f"sha256:{digest[:8]}")
    return {"net": Published("net", "torchvision", remote)}


def test_a_file_is_downloaded_and_not_a_second_time(server, published, tmp_path):
    for _ in range(2):
        file = download_weights("net", tmp_path / "new", published=published, progress=False)
        assert file == tmp_path / "new" / "net-x.pth" and file.read_bytes() == CONTENT
    assert server.requests == [0] and [path.name for path in file.parent.iterdir()] == ["net-x.pth"]


def test_an_interrupted_download_is_continued(server, published, tmp_path):
    server.cut = [50_000]
    (tmp_path / "net-x.pth.part").write_bytes(CONTENT[:1000])
    assert download_weights("net", tmp_path, published=published, progress=False).read_bytes() == CONTENT
    assert server.requests == [1000, 51_000]


def test_a_file_with_another_checksum_is_removed(server, published, tmp_path):
    server.files["net-x.pth"] = CONTENT[:-1] + b"?"
    with pytest.raises(UserError, match=r"net-x\.pth\.part: its sha256 is .* where [0-9a-f]{8}… was expected; .*remov"):
        download_weights("net", tmp_path, published=published, progress=False)
    assert not list(tmp_path.iterdir())


def test_a_missing_file_says_what_to_do(server, published, tmp_path):
    server.files.clear()
    with pytest.raises(UserError, match=rf"404 .*; run this again later, or download .* to {tmp_path / 'net-x.pth'}"):
        download_weights("net", tmp_path, published=published, progress=False)


def test_a_folder_that_cannot_be_written(server, published, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file: .*; choose another folder with --out"):
        download_weights("net", tmp_path / "file", published=published, progress=False)
    assert server.requests == []


def test_an_unknown_name_is_answered_with_a_similar_one(tmp_path):
    message = r"^fasterrcnn: no published weights have this name; did you mean .*fasterrcnn_resnet50_fpn.*\?$"
    with pytest.raises(UserError, match=message):
        download_weights("fasterrcnn", tmp_path)


def test_names_urls_and_checksums():
    weights = published_weights()
    assert weights["ResNet50_Weights.IMAGENET1K_V2"].remote == RemoteFile(
        url="https://download.pytorch.org/models/resnet50-11ad3fa6.pth",
        file="resnet50-11ad3fa6.pth",
        checksum="sha256:11ad3fa6",
    )
    url = "https://dl.fbaipublicfiles.com/detectron2/COCO-Detection/faster_rcnn_R_50_C4_1x/137257644/"
    assert weights["faster_rcnn_R_50_C4_1x"].remote == RemoteFile(
        url=f"{url}model_final_721ade.pkl", file="faster_rcnn_R_50_C4_1x_721ade.pkl", checksum="md5:721ade"
    )
    for one in weights.values():
        digits = (one.remote.checksum or "").partition(":")[2]
        assert one.remote.url.startswith("https://") and set(digits) <= set("0123456789abcdef")
        assert len(digits) in ((0,) if one.project == "yolox" else (6, 8))
    url = "https://github.com/Megvii-BaseDetection/YOLOX/releases/download/0.1.1rc0/yolox_s.pth"
    assert weights["yolox_s"].remote == RemoteFile(url=url, file="yolox_s.pth")
    assert len({one.remote.file for one in weights.values()}) == len(weights)
    assert "VGG16_Weights.IMAGENET1K_FEATURES" not in weights


def test_the_list_names_all_and_marks_those_that_are_here(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("detect.foreign_weights.published.weights_folder", lambda: tmp_path)
    (tmp_path / "resnet18-f37072fd.pth").touch()
    assert main(["weights", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(any(line.split()[:1] == [name] for line in lines) for name in published_weights())
    assert [line.split() for line in lines if line.endswith("here")] == [
        ["ResNet18_Weights.IMAGENET1K_V1", "45", "MB", "here"]
    ]
    assert max(map(len, lines)) <= 80
