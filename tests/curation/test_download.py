import hashlib
import io
import socket
import stat
import tarfile
import zipfile

import pytest

from detect.curation.download import download
from detect.curation.download_sources import SOURCES, Archive, Source
from detect.errors import UserError
from detect.files.atomic import new_folder

FILES = {
    "VOCdevkit/VOC/JPEGImages/1.jpg": b"\xff\xd8 no photograph" * 9000,
    "VOCdevkit/VOC/Annotations/1.xml": b"<annotation/>",
    "VOCdevkit/VOC/ImageSets/Main/train.txt": b"1\n",
    "VOCdevkit/readme.txt": b"left out",
}


def make_tar(files=FILES, members=()):
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for member in members:
            archive.addfile(member)
    return data.getvalue()


def make_zip(files=FILES, compression=zipfile.ZIP_STORED):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return data.getvalue()


def sources(server, content, file="voc.tar", limit=10**6, **changes):
    """Return one data set `voc` with one archive, which the server has."""
    server.files[file] = content
    given = {
        "url": f"{server.url}/{file}",
        "file": file,
        "inside": "VOCdevkit/VOC",
        "size": len(content),
        "checksum": f"md5:{hashlib.md5(content, usedforsecurity=False).hexdigest()}",
    }
    return {"voc": Source((Archive(**{**given, **changes}),), limit=limit, licence="Made for a test.")}


def assert_complete(root):
    folder = root / "voc"
    for name, content in FILES.items():
        path = folder / name.removeprefix("VOCdevkit/VOC/")
        assert path.read_bytes() == content if "VOC/" in name else not path.exists()
    assert sorted(path.name for path in root.iterdir()) == ["voc"]


def assert_refused(root, given, *words, left=()):
    """Check that the error is one line with all words, and that only `left` is in the folder."""
    with pytest.raises(UserError) as caught:
        download("voc", root, sources=given, progress=False)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)
    assert sorted(path.name for path in root.glob("**/*")) == sorted(left)


# ---------------------------------------------------------------------------------------------------------------- fetch


@pytest.mark.parametrize(("file", "make"), [("voc.tar", make_tar), ("voc.zip", make_zip)])
def test_whole(server, tmp_path, file, make):
    content = make()
    assert download("voc", tmp_path, sources=sources(server, content, file), progress=False) == tmp_path / "voc"
    assert_complete(tmp_path)
    note = (tmp_path / "voc" / "SOURCE.txt").read_text()
    assert f"{server.url}/{file}" in note
    assert hashlib.sha256(content).hexdigest() in note
    assert "Made for a test." in note


def test_several_archives_make_one_folder(server, tmp_path):
    first = sources(server, make_tar({"VOCdevkit/VOC/a": b"1"}), "a.tar")["voc"].archives
    second = sources(server, make_zip({"VOCdevkit/VOC/b": b"2"}), "b.zip")["voc"].archives
    download("voc", tmp_path, sources={"voc": Source(first + second, 10**6, "")}, progress=False)
    assert sorted(path.name for path in (tmp_path / "voc").iterdir()) == ["SOURCE.txt", "a", "b"]


def test_parts_by_their_name_and_all_by_the_first(server, tmp_path):
    given = {
        f"coco/{part}": sources(server, make_zip({f"{part}/1": b"1"}), f"{part}.zip", inside=part)["voc"]
        for part in ("annotations", "val2017")
    }
    assert download("coco/val2017", tmp_path, sources=given, progress=False) == tmp_path / "coco"
    assert [path.name for path in (tmp_path / "coco").iterdir()] == ["val2017"]
    assert download("coco", tmp_path, sources=given, progress=False) == tmp_path / "coco"
    assert (tmp_path / "coco" / "annotations" / "1").read_bytes() == b"1"
    assert len(server.requests) == 2


def test_present_is_not_fetched_again(server, tmp_path, capsys):
    given = sources(server, make_tar())
    (tmp_path / "voc").mkdir()
    (tmp_path / "voc" / "mine").touch()
    assert download("voc", tmp_path, sources=given) == tmp_path / "voc"
    assert server.requests == []
    assert "exists already" in capsys.readouterr().err


def test_a_cut_connection_goes_on_where_it_stopped(server, tmp_path):
    server.cut = [1000, 70_000]
    download("voc", tmp_path, sources=sources(server, make_tar()), progress=False)
    assert server.requests == [0, 1000, 71_000]
    assert_complete(tmp_path)


def test_a_later_run_goes_on_where_the_last_one_stopped(server, tmp_path):
    content = make_tar()
    (tmp_path / "voc.tar.part").write_bytes(content[:5000])
    download("voc", tmp_path, sources=sources(server, content), progress=False)
    assert server.requests == [5000]
    assert_complete(tmp_path)


def test_a_server_without_ranges_starts_again(server, tmp_path):
    server.ranges, server.cut = False, [1000]
    download("voc", tmp_path, sources=sources(server, make_tar()), progress=False)
    assert server.requests == [0, 0]
    assert_complete(tmp_path)


def test_progress_is_what_makes_another_try(server, tmp_path):
    server.cut = [10] * 8  # more interruptions than retries, but each connection sent data
    download("voc", tmp_path, sources=sources(server, make_tar()), progress=False)
    assert len(server.requests) == 9


def test_no_progress_ends_after_all_tries(server, tmp_path):
    server.cut = [0] * 9
    given = sources(server, make_tar())
    assert_refused(tmp_path, given, f"{server.url}/voc.tar", "cut after 0 of", left=["voc.tar.part"])
    assert server.requests == [0, 0, 0]


def test_a_part_that_is_complete_is_not_fetched(server, tmp_path):
    content = make_tar()
    (tmp_path / "voc.tar.part").write_bytes(content)
    download("voc", tmp_path, sources=sources(server, content), progress=False)
    assert server.requests == []
    assert_complete(tmp_path)


@pytest.mark.parametrize("size", [None, 1])
def test_a_part_that_is_too_long_starts_again(server, tmp_path, size):
    content = make_tar()
    (tmp_path / "voc.tar.part").write_bytes(content + b"more")
    size = size and len(content)
    download("voc", tmp_path, sources=sources(server, content, size=size), progress=False)
    assert server.requests == [len(content) + 4, 0]
    assert_complete(tmp_path)


def test_a_passing_error_of_the_server(server, tmp_path):
    server.codes = [503, 429]
    download("voc", tmp_path, sources=sources(server, make_tar()), progress=False)
    assert_complete(tmp_path)


def test_not_found_is_final(server, tmp_path):
    given = sources(server, make_tar())
    server.files.clear()
    place = str(tmp_path / "voc.tar")
    assert_refused(tmp_path, given, f"{server.url}/voc.tar", "404", f"by other means to {place}")
    assert len(server.requests) == 1


def test_connection_refused(server, tmp_path):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound, but not listening
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}/voc.tar"
        assert_refused(tmp_path, sources(server, make_tar(), url=url), url, "refused", str(tmp_path / "voc.tar"))


def test_a_failure_leaves_no_new_root(server, tmp_path):
    given = sources(server, make_tar(), url=f"{server.url}/none")
    with pytest.raises(UserError):
        download("voc", tmp_path / "new" / "data", sources=given, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_unknown_name(tmp_path):
    with pytest.raises(UserError, match=r"^imagenet: no data set has this name; choose one of voc2007, voc2012, coco/"):
        download("imagenet", tmp_path, progress=False)


# --------------------------------------------------------------------------------------------------------------- verify


def test_wrong_checksum_removes_the_file(server, tmp_path):
    given = sources(server, make_tar(), checksum=f"sha256:{'0' * 64}")
    assert_refused(tmp_path, given, "its sha256 is", "0" * 64, "was removed")


def test_another_size_is_not_even_fetched(server, tmp_path):
    given = sources(server, make_tar(), size=77)
    assert_refused(tmp_path, given, "bytes are offered where 77 were expected")


def test_a_server_may_not_fill_the_disk(server, tmp_path):
    given = sources(server, make_tar(), size=None, checksum=None, limit=1000)
    assert_refused(tmp_path, given, "where at most 1000 were expected")


def test_without_checksum_the_computed_one_is_reported(server, tmp_path, capsys):
    content = make_zip()
    download("voc", tmp_path, sources=sources(server, content, "voc.zip", size=None, checksum=None))
    assert hashlib.sha256(content).hexdigest() in capsys.readouterr().err
    assert_complete(tmp_path)


def test_brought_by_hand(server, tmp_path):
    content = make_tar()
    (tmp_path / "voc.tar").write_bytes(content)
    download("voc", tmp_path, sources=sources(server, content), progress=False)
    assert server.requests == []
    assert (tmp_path / "voc.tar").read_bytes() == content
    assert (tmp_path / "voc" / "JPEGImages" / "1.jpg").exists()


def test_the_wrong_file_brought_by_hand_stays(server, tmp_path):
    (tmp_path / "voc.tar").write_bytes(b"something else")
    assert_refused(tmp_path, sources(server, make_tar()), "voc.tar: 14 bytes where", "remove it", left=["voc.tar"])


# --------------------------------------------------------------------------------------------------------------- unpack


def member(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize("name", ["VOCdevkit/VOC/../../../evil", "/tmp/evil", "..", "VOCdevkit\\..\\evil", "C:/evil"])
@pytest.mark.parametrize(("file", "make"), [("voc.tar", make_tar), ("voc.zip", make_zip)])
def test_no_way_out_of_the_folder(server, tmp_path, name, file, make):
    given = sources(server, make({**FILES, name: b"evil"}), file)
    assert_refused(tmp_path / "root", given, "outside of its folder")
    assert list(tmp_path.iterdir()) == [tmp_path / "root"] or list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "bad",
    [
        member("VOCdevkit/VOC/link", tarfile.SYMTYPE, "/etc/passwd"),
        member("VOCdevkit/VOC/link", tarfile.LNKTYPE, "VOCdevkit/VOC/Annotations/1.xml"),
        member("VOCdevkit/VOC/pipe", tarfile.FIFOTYPE),
        member("VOCdevkit/VOC/device", tarfile.CHRTYPE),
    ],
    ids=["symlink", "hard link", "pipe", "device"],
)
def test_tar_of_links_and_devices(server, tmp_path, bad):
    assert_refused(tmp_path, sources(server, make_tar(members=[bad])), "is a link, a device or encrypted")


def test_zip_of_a_link(server, tmp_path):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        link = zipfile.ZipInfo("VOCdevkit/VOC/link")
        link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    assert_refused(tmp_path, sources(server, data.getvalue(), "voc.zip"), "is a link")


def test_a_bomb_of_zeros(server, tmp_path):
    content = make_zip({"VOCdevkit/VOC/zeros": bytes(5_000_000)}, zipfile.ZIP_DEFLATED)
    assert len(content) < 10_000
    assert_refused(tmp_path, sources(server, content, "voc.zip"), "unpacks to more than")


def test_a_bomb_of_empty_files(server, tmp_path):
    content = make_zip({f"VOCdevkit/VOC/{index}": b"" for index in range(300)})
    assert_refused(tmp_path, sources(server, content, "voc.zip"), "unpacks to more than")


@pytest.mark.parametrize("file", ["voc.tar", "voc.zip"])
def test_no_archive_at_all(server, tmp_path, file):
    assert_refused(tmp_path, sources(server, b"<html>log in</html>" * 60, file), "cannot be unpacked", "was removed")


def test_a_damaged_zip(server, tmp_path):
    content = make_zip().replace(b"<annotation/>", b"<annotatiom/>")
    assert_refused(tmp_path, sources(server, content, "voc.zip"), "CRC")


def test_an_archive_without_the_folder(server, tmp_path):
    assert_refused(tmp_path, sources(server, make_tar({"other": b""})), "it has no folder VOCdevkit/VOC")


# --------------------------------------------------------------------------------------------------------------- folder


def test_new_folder_waits_for_no_other_run(tmp_path):
    with new_folder(tmp_path / "a") as draft:
        (draft / "x").touch()
        with pytest.raises(UserError, match="another run"), new_folder(tmp_path / "a"):
            pass
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["x"]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_new_folder_over_a_file(tmp_path):
    (tmp_path / "a").touch()
    with pytest.raises(UserError, match="is not a folder"), new_folder(tmp_path / "a"):
        pass


def test_root_is_a_file(server, tmp_path):
    (tmp_path / "root").touch()
    with pytest.raises(UserError, match=r"cannot be created .*; fix that or choose another"):
        download("voc", tmp_path / "root", sources=sources(server, make_tar()), progress=False)


# -------------------------------------------------------------------------------------------------------------- sources


def test_sources_over_plain_http_have_a_checksum():
    archives = [archive for source in SOURCES.values() for archive in source.archives]
    assert all(archive.checksum and archive.size for archive in archives if not archive.url.startswith("https://"))
    assert len({archive.file for archive in archives}) == len(archives)
    for archive in archives:
        algorithm, _, digest = (archive.checksum or "md5:" + "0" * 32).partition(":")
        assert len(digest) == 2 * hashlib.new(algorithm).digest_size


def test_sources_can_be_unpacked_within_their_limit():
    for source in SOURCES.values():
        assert source.licence
        assert source.limit > 1.5 * sum(archive.size or 0 for archive in source.archives)
