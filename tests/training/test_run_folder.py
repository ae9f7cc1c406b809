import os
import resource
import subprocess
import sys

import pytest
import torch

from detect.errors import UserError
from detect.training.checkpoints import AtomicCheckpointIO
from detect.training.metrics import MetricsFile
from detect.training.run_folder import owned, write

HOLD = """
import fcntl, sys, time
file = open(sys.argv[1], "a")
fcntl.lockf(file, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def small_files():
    """No file may be larger than 64 KB, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_folder_has_one_owner_until_that_is_killed(tmp_path):
    out = tmp_path / "run"
    with owned(out):
        pass
    with subprocess.Popen([sys.executable, "-c", HOLD, str(out / ".lock")], stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        with (
            pytest.raises(UserError, match=r"run: another run is using this folder; give another --out$"),
            owned(out),
        ):
            pass
        other.kill()
    with owned(out):
        pass


def test_workers_do_not_hold_the_folder(tmp_path):
    """They may outlive their process by seconds."""
    reads, writes = os.pipe()
    with owned(tmp_path):
        worker = os.fork()
        if worker == 0:
            os.read(reads, 1)
            os._exit(0)
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            HOLD.replace("LOCK_EX", "LOCK_EX | fcntl.LOCK_NB").replace("60", "0"),
            tmp_path / ".lock",
        ],
        capture_output=True,
    )
    os.write(writes, b".")
    os.waitpid(worker, 0)
    assert done.returncode == 0 and done.stdout == b"held\n"


def test_half_written_files_of_a_killed_run_go(tmp_path):
    for name in ("checkpoints/.last.0123.part.ckpt", ".metrics.csv.part", "mine.part"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / ".crops.partial").mkdir()  # of another command, which may be running
    with owned(tmp_path):
        kept = sorted(path.name for path in tmp_path.rglob("*.part*"))
    assert kept == [".crops.partial", "mine.part"]


def test_a_checkpoint_that_the_disk_does_not_take(tmp_path, small_files):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"x": torch.zeros(100)}, path)
    shared = torch.ones(500_000)
    with pytest.raises(
        UserError, match=r"last\.ckpt: File too large; needed: 2\.0 MB; free: .*; free some space, then continue"
    ):
        AtomicCheckpointIO().save_checkpoint({"x": shared, "again": shared}, path)
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]
    assert not torch.load(path, weights_only=True)["x"].any()


def test_a_text_that_the_disk_does_not_take(tmp_path, small_files):
    write(tmp_path / "config.yaml", "before")
    with pytest.raises(UserError, match=r"config\.yaml: File too large; needed: 90000 bytes; free:"):
        write(tmp_path / "config.yaml", "x" * 90_000)
    assert [file.name for file in tmp_path.iterdir()] == ["config.yaml"]
    assert (tmp_path / "config.yaml").read_text() == "before"


def test_metrics_that_the_disk_does_not_take(tmp_path, small_files):
    metrics = MetricsFile(tmp_path / "metrics.csv")
    with pytest.raises(UserError, match=r"metrics\.csv: File too large; "):
        for step in range(10**4):
            metrics.log_metrics({"loss": 1 / 3}, step)
    kept = MetricsFile(tmp_path / "metrics.csv", metrics.rows, 10**4)
    assert kept.rows == metrics.rows > 1000


def test_metrics_go_on_where_a_checkpoint_saw_them(tmp_path):
    file = tmp_path / "metrics.csv"
    metrics = MetricsFile(file)
    metrics.log_metrics({"loss": 0.5}, 0)
    metrics.log_metrics({"AP": 0.25}, 0)  # a new column
    metrics.log_metrics({"rate": 0.1}, 1)  # of the next step, logged before the checkpoint
    with file.open("a") as torn:
        torn.write("0.7,0.3")  # cut short
    metrics = MetricsFile(file, rows=3, step=1)
    metrics.log_metrics({"rate": 0.1}, 1)
    assert file.read_text().splitlines() == ["AP,loss,rate,step", ",0.5,,0", "0.25,,,0", ",,0.1,1"]
    assert MetricsFile(file).rows == 0 and not file.exists()
