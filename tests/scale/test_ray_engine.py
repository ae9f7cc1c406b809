"""Checks of the engine that need no Ray."""

import socket
import subprocess
import sys

import pytest

from detect.cli import main
from detect.errors import UserError
from detect.prediction.output_folder import OutputFolder
from detect.scale import ray_engine
from detect.scale.ray_engine import RayEngine, share
from detect.scale.worker import Job, Worker

MACHINE, GPUS = {"CPU": 8.0, "memory": 1e9}, {"CPU": 12.0, "GPU": 2.0}


@pytest.mark.parametrize(
    ("nodes", "kind", "actors", "expected"),
    [
        ([MACHINE], "CPU", None, (8, 1)),
        ([MACHINE], "CPU", 8, (8, 1)),
        ([MACHINE], "CPU", 3, (3, 2)),
        ([MACHINE], "CPU", 1, (1, 8)),
        ([MACHINE, {"CPU": 3.0}], "CPU", None, (11, 1)),
        ([MACHINE, {"CPU": 3.0}], "CPU", 3, (3, 3)),  # two on the first machine
        ([MACHINE, {"memory": 1e9}], "CPU", 2, (2, 4)),
        ([GPUS, MACHINE], "GPU", None, (2, 6)),
        ([GPUS, GPUS], "GPU", 3, (3, 6)),
        ([GPUS, GPUS], "GPU", 1, (1, 12)),
        ([{"CPU": 1.0, "GPU": 4.0}], "GPU", None, (1, 1)),  # each actor needs a CPU, too
    ],
)
def test_each_actor_has_as_many_cpus_as_fit(nodes, kind, actors, expected):
    assert share(nodes, kind, actors) == expected


def test_too_few_cpus_or_gpus():
    with pytest.raises(UserError, match="--actors: 9; there are CPUs for 8, one each: give --actors 8 or fewer"):
        share([MACHINE], "CPU", 9)
    with pytest.raises(UserError, match="--actors: 3; there are GPUs for 2, one each: give --actors 2 or fewer"):
        share([GPUS, MACHINE], "GPU", 3)
    with pytest.raises(UserError, match="there are CPUs for 0, one each: give the --address of a cluster"):
        share([], "CPU", None)


@pytest.fixture
def installed(monkeypatch):
    """Pretend that Ray is installed."""
    monkeypatch.setattr(ray_engine, "find_spec", lambda name: name)


def predict(capsys, tmp_path, *arguments) -> str:
    """Run the command without a checkpoint, which is read last, and return the line of its error."""
    out = tmp_path / "out"
    assert main(["predict", "photos", "--ckpt", "a.ckpt", "--out", str(out), *arguments]) == 2
    assert not out.exists()
    return capsys.readouterr().err.strip()


def test_mistakes_in_the_options(tmp_path, capsys, installed, monkeypatch):
    monkeypatch.setattr(ray_engine, "available_cores", lambda: 4)
    assert predict(capsys, tmp_path, "--actors", "2").endswith(
        "--actors: this is an option of an engine; add --engine ray"
    )
    assert "--address: this is an option of an engine" in predict(capsys, tmp_path, "--address", "auto")
    assert predict(capsys, tmp_path, "--engine", "ray", "--actors", "0").endswith("--actors: 0; give 1 or more")
    assert "--actors: 5; there are CPUs for 4" in predict(capsys, tmp_path, "--engine", "ray", "--actors", "5")
    assert RayEngine("head:6379", 5).actors == 5  # the cluster is asked later


def test_ray_is_not_installed(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(ray_engine, "find_spec", lambda name: None)
    error = predict(capsys, tmp_path, "--engine", "ray")
    assert error == "detect: error: --engine ray: Ray is not installed: pip install 'rcnn-family[ray]'"


def test_a_worker_sets_its_threads_before_torch_reads_them():
    code = "import sys, detect.scale.worker; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout.split() == [b"False"]


def test_a_worker_cannot_see_the_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    job = Job(tmp_path / "a.ckpt", {}, OutputFolder(tmp_path / "out", {}, 1), False, 1, 1, str(tmp_path / "gone"))
    with pytest.raises(
        UserError, match=r"gone: No such file or directory; start from a folder that all machines share"
    ):
        Worker(job).load()


def test_no_cluster_answers():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(UserError, match=f"--address: {address}: no cluster answers .*refused"):
            ray_engine._check_answers(address)
