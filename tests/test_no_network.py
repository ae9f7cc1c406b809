"""No command uses the network: every command runs with a hook that records attempts, and there are none.

An audit hook records the calls of `socket`, also in child processes. The exceptions, `detect data download`, `detect
weights download` and `detect predict --download`, are not run.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

HOOK = """
import os, sys
def _count(event, arguments):
    # A socket without an address, for example to wake a thread, is not network access.
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "socket.bind"):
        place = arguments[1] if event in ("socket.connect", "socket.sendto", "socket.bind") else arguments[0]
        if event.startswith("socket.get") or isinstance(place, tuple):
            with open(os.environ["ATTEMPTS"], "a") as file:
                print(os.getpid(), event, place, sys.argv, file=file)
            raise OSError(101, "Network is unreachable")
sys.addaudithook(_count)
"""
TINY = """
model: {backbone: {name: resnet, depth: 18, norm: batch, train_stages: 5}, neck: {name: fpn, channels: 32},
  rpn: {anchor_sizes: [8, 16, 32, 48, 64]},
  box_head: {layers: 1, channels: 32}, region_head: {batch_size_per_image: 16}}
data: {root: DATA, short_side: [64], long_side: 96, batch_size: 2, workers: 1, canvases: 1}
training: {epochs: 1, accelerator: cpu, devices: 1, warmup_steps: 0, milestones: []}
"""
SCRIPT = """
import json, os, sys
from detect.cli import main
if __name__ == "__main__":  # not in processes of propose and of data loaders
    for words in json.loads(sys.argv[1]):
        try:
            code = main(words)
        except SystemExit as end:
            code = end.code
        print("ran", words[0], words[1], code, flush=True)
"""


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """Return a function that runs Python with the hook and returns the finished process and the attempts."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(HOOK)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path / 'site'}{os.pathsep}{Path(__file__).parents[1]}"}
    environment |= {"ATTEMPTS": str(tmp_path / "attempts"), "MPLCONFIGDIR": str(tmp_path / "matplotlib")}
    environment |= {"TORCH_HOME": str(tmp_path / "torch"), "HOME": str(tmp_path)}  # no caches
    environment.pop("NO_ALBUMENTATIONS_UPDATE", None)

    def run(*arguments):
        command = [sys.executable, "-W", "ignore", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
        attempts = tmp_path / "attempts"
        return done, attempts.read_text() if attempts.exists() else ""

    return run


def test_the_hook_records_an_attempt(offline, tmp_path):
    """Attempts are recorded, also in processes of multiprocessing; otherwise the test below would prove nothing."""
    code = """
import multiprocessing, socket, urllib.request
def connect():
    try: urllib.request.urlopen("http://example.invalid/")
    except OSError: pass
if __name__ == "__main__":
    connect()
    for way in ("spawn", "fork"):
        one = multiprocessing.get_context(way).Process(target=connect); one.start(); one.join()
"""
    (tmp_path / "attempt.py").write_text(code)
    _, attempts = offline(tmp_path / "attempt.py")
    assert attempts.count("socket.getaddrinfo") == 3


@pytest.mark.slow
def test_no_command_uses_the_network(offline, tmp_path):
    pytest.importorskip("onnxruntime")
    (tmp_path / "tiny.yaml").write_text(TINY.replace("DATA", str(tmp_path / "shapes")))
    Image.new("RGB", (64, 48)).save(tmp_path / "photo.png")
    run, ckpt = tmp_path / "run", tmp_path / "run" / "checkpoints" / "best.ckpt"
    annotations, results = tmp_path / "shapes/annotations/instances_val.json", tmp_path / "evaluated/predictions.json"
    commands = [
        ["data", "shapes", "--out", "shapes", "--images", "6"],
        ["data", "check", "shapes"],
        ["data", "stats", "shapes"],
        ["model", "tiny.yaml"],
        ["train", "-c", "tiny.yaml", "--out", run],
        ["train", "--weights", ckpt, "--out", "tuned", "--data.root", "shapes", "--data.workers", "1"],
        ["weights", "list"],
        ["eval", "--ckpt", ckpt, "--split", "val", "--out", "evaluated"],
        ["predict", "--ckpt", ckpt, "photo.png", "--out", "predicted"],
        ["export", "--ckpt", ckpt, "--format", "onnx", "--out", "model.onnx"],
        ["predict", "--ckpt", "model.onnx", "photo.png", "--out", "exported"],
        ["report", "--truth", annotations, "--predictions", results, "--out", "report"],
        ["import", "torchvision", "weights.pth", "--out", "imported.ckpt"],
        ["propose", "photo.png", "--out", "proposals.db", "--processes", "1"],
    ]
    weights = """
import torch, torchvision
model = torchvision.models.detection.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None)
torch.save(model.state_dict(), "weights.pth")
"""
    (tmp_path / "commands.py").write_text(SCRIPT)
    offline("-c", weights)
    done, attempts = offline(tmp_path / "commands.py", json.dumps([[*map(str, words)] for words in commands]))
    ran = [line.split() for line in done.stdout.splitlines() if line.startswith("ran ")]
    assert [words[1] for words in ran] == [command[0] for command in commands], done.stderr[-3000:]
    # data check reports warnings about the generated data set.
    assert {words[1] for words in ran if words[-1] != "0"} <= {"data"}, done.stdout + done.stderr[-3000:]
    assert attempts == ""
