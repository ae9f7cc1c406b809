import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing

import numpy as np
import pytest

from detect.errors import UserError
from detect.proposals.store import ProposalStore, digest

PARAMETERS = {"mode": "fast", "seed": 0}
ONE, TWO = bytes(16), bytes(range(16))


def boxes(*rows) -> np.ndarray:
    return np.array(rows, np.float32).reshape(-1, 4)


@pytest.mark.parametrize("stored", [boxes(), boxes((0, 0, 65535, 1)), boxes((5, 6, 7, 8), (1, 2, 3, 4), (5, 6, 7, 8))])
def test_boxes_are_returned_in_their_order(tmp_path, stored):
    with closing(ProposalStore(tmp_path / "a", PARAMETERS)) as store:
        store.add(ONE, "a.jpg", stored)
    with closing(ProposalStore(tmp_path / "a")) as store:
        back = store.boxes(ONE)
        assert back.dtype == np.float32 and back.shape == stored.shape and np.array_equal(back, stored)
        assert ONE in store and TWO not in store and len(store) == 1 and store.parameters == PARAMETERS


def test_a_box_takes_eight_bytes(tmp_path):
    with closing(ProposalStore(tmp_path / "a", PARAMETERS)) as store:
        for image in range(20):
            store.add(bytes([image] * 16), "a.jpg", np.full((1000, 4), 7, np.float32))
    assert 20 * 8000 < (tmp_path / "a").stat().st_size < 1.2 * 20 * 8000


@pytest.mark.parametrize("value", [0.5, -1, 65536, np.nan])
def test_coordinates_beyond_sixteen_bits_are_refused(tmp_path, value):
    with closing(ProposalStore(tmp_path / "a", PARAMETERS)) as store:
        with pytest.raises(ValueError, match="integer coordinates"):
            store.add(ONE, "a.jpg", boxes((value, 0, 1, 1)))
        assert len(store) == 0


def test_an_unknown_image(tmp_path):
    with closing(ProposalStore(tmp_path / "a", PARAMETERS)) as store:
        store.add(ONE, "a.jpg", boxes())
        with pytest.raises(KeyError):
            store.boxes(TWO)
        paths = {tmp_path / "here": ONE, tmp_path / "new": TWO}
        assert store.missing(paths) == [tmp_path / "new"] and store.missing({}) == []


def test_adding_an_image_again_replaces_it(tmp_path):
    with closing(ProposalStore(tmp_path / "a", PARAMETERS)) as store:
        store.add(ONE, "a.jpg", boxes((1, 2, 3, 4)))
        store.add(ONE, "b.jpg", boxes((5, 6, 7, 8)))
        assert len(store) == 1 and store.boxes(ONE).tolist() == [[5, 6, 7, 8]]


def test_other_parameters_are_refused_and_the_difference_named(tmp_path):
    ProposalStore(tmp_path / "a", PARAMETERS).close()
    with pytest.raises(UserError, match=r"a: has proposals with mode fast instead of quality; choose another file"):
        ProposalStore(tmp_path / "a", PARAMETERS | {"mode": "quality"})
    ProposalStore(tmp_path / "a", dict(reversed(PARAMETERS.items()))).close()


def test_a_reader_changes_nothing(tmp_path):
    ProposalStore(tmp_path / "a", PARAMETERS).close()
    before = (tmp_path / "a").read_bytes()
    with closing(ProposalStore(tmp_path / "a")) as store, pytest.raises(UserError, match="readonly"):
        store.add(ONE, "a.jpg", boxes())
    assert (tmp_path / "a").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("content", [b"", b"no database at all" * 99])
def test_a_file_that_is_not_a_store(tmp_path, content):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(UserError, match=r"a: not a proposal store; choose another file"):
        ProposalStore(tmp_path / "a")


def test_another_database_is_not_changed(tmp_path):
    with closing(sqlite3.connect(tmp_path / "a")) as other:
        other.executescript("CREATE TABLE cats (name TEXT); INSERT INTO cats VALUES ('Tom')")
    before = (tmp_path / "a").read_bytes()
    for parameters in (None, PARAMETERS):
        with pytest.raises(UserError, match="not a proposal store"):
            ProposalStore(tmp_path / "a", parameters)
    assert (tmp_path / "a").read_bytes() == before


def test_paths_where_no_store_can_be_opened(tmp_path):
    with pytest.raises(UserError, match=r"gone: no such file; create it with detect propose"):
        ProposalStore(tmp_path / "gone")
    with pytest.raises(UserError, match="unable to open"):
        ProposalStore(tmp_path / "no folder" / "a", PARAMETERS)
    with pytest.raises(UserError, match="unable to open"):
        ProposalStore(tmp_path, PARAMETERS)


def test_a_changed_byte_is_detected(tmp_path):
    with closing(ProposalStore(tmp_path / "a", PARAMETERS)) as store:
        store.add(ONE, "a.jpg", np.full((1000, 4), 0x4241, np.float32))
    content = (tmp_path / "a").read_bytes()
    place = content.index(b"AB" * 100) + 50
    (tmp_path / "a").write_bytes(content[:place] + b"?" + content[place + 1 :])
    with closing(ProposalStore(tmp_path / "a")) as store, pytest.raises(UserError, match="damaged"):
        store.boxes(ONE)
    (tmp_path / "a").write_bytes(content[: len(content) // 2])
    with (
        pytest.raises(UserError, match=r"damaged|not a proposal store"),
        closing(ProposalStore(tmp_path / "a")) as store,
    ):
        store.boxes(ONE)


def fill(path, started) -> None:
    store = ProposalStore(path, PARAMETERS)
    for image in range(10**6):
        store.add(image.to_bytes(16, "big"), "a.jpg", np.full((2000, 4), image % 60000, np.float32))
        if image == 5:
            started.set()


def test_after_a_killed_writer_each_image_is_stored_completely_or_not_at_all(tmp_path):
    context = multiprocessing.get_context("spawn")
    started = context.Event()
    writer = context.Process(target=fill, args=(tmp_path / "a", started))
    writer.start()
    assert started.wait(60)
    os.kill(writer.pid, signal.SIGKILL)
    writer.join()
    with closing(ProposalStore(tmp_path / "a")) as store:  # a reader may be the first to open it
        count = len(store)
    with closing(ProposalStore(tmp_path / "a", PARAMETERS)) as store:
        assert len(store) == count
        assert count >= 6
        for image in range(count):
            assert (store.boxes(image.to_bytes(16, "big")) == image % 60000).all()
        store.add(count.to_bytes(16, "big"), "a.jpg", boxes())
        assert len(store) == count + 1


def test_a_digest_depends_only_on_the_content(tmp_path):
    for name, content in (("a", b"x" * 3_000_000), ("b", b"x" * 3_000_000), ("c", b"x" * 2_999_999 + b"y"), ("d", b"")):
        (tmp_path / name).write_bytes(content)
    a, b, c, d = (digest(tmp_path / name) for name in "abcd")
    assert a == b and len({a, c, d}) == 3 and len(a) == 16


def test_several_processes_create_and_fill_one_store(tmp_path):
    """All start at once: nothing is lost or stored twice, and a process that dies does not block the others."""
    code = (
        "import os, sys, time; from pathlib import Path; import numpy as np\n"
        "from detect.proposals.store import ProposalStore\n"
        "folder, name = Path(sys.argv[1]), int(sys.argv[2])\n"
        "(folder / f'ready{name}').touch()\n"
        "while len(list(folder.glob('ready*'))) < 3: time.sleep(0.001)\n"
        "for place in range(10):\n"
        "    store = ProposalStore(folder / f'store{place}', {'mode': 'fast'})\n"
        "    for number in range(4):\n"
        "        store.add(bytes([name, number]), 'own', np.full((2, 4), name, np.float32))\n"
        "        store.add(bytes([number]), 'shared', np.full((2, 4), number, np.float32))\n"
        "    if name == 2 and place == 9:\n"
        "        store._database.execute('BEGIN IMMEDIATE')\n"
        "        os.kill(os.getpid(), 9)\n"
        "    store.close()\n"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(name)], stderr=subprocess.PIPE, text=True)
        for name in range(3)
    ]
    errors = [process.communicate(timeout=60)[1] for process in running]
    assert [process.returncode for process in running] == [0, 0, -9], errors
    for place in range(10):
        store = ProposalStore(tmp_path / f"store{place}")
        assert len(store) == 16 and all(store.boxes(bytes([n]))[0, 0] == n for n in range(4))
        assert all(store.boxes(bytes([name, n]))[0, 0] == name for name in range(3) for n in range(4))
        store.close()
