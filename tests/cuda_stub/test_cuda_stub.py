"""Models, training loop and memory on the device `cuda`, with a CUDA runtime whose kernels do nothing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import stub_library

ROOT = Path(__file__).parents[2]
# Launches and GiB of a step of Faster R-CNN, ResNet-50-FPN at 800 × 1088; a later change may lower them.
BOUNDS = {
    "training, batch 2, fp32": (1100, 2.0),
    "training, batch 2, fp16": (1300, 1.4),
    "training, batch 16, fp16": (1300, 7.5),
    "inference, batch 1, fp32": (470, 0.5),
}
# Runs a script and leaves at once: torch's thread of the backward pass can abort an interpreter that shuts down.
RUN = """
import os, runpy, sys
sys.argv = sys.argv[1:]
sys.path[0] = os.path.dirname(sys.argv[0])
runpy.run_path(sys.argv[0], run_name="__main__")
sys.stdout.flush()
os._exit(0)
"""
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> dict[str, str]:
    if reason := stub_library.why_not():
        pytest.skip(reason)
    return stub_library.build(tmp_path_factory.mktemp("cuda_stub")) | {"PYTHONPATH": str(ROOT)}


def lines_of(environment: dict[str, str], script: Path, *arguments: str | Path) -> list[str]:
    """Return what a script prints in a process of its own."""
    command = [sys.executable, "-c", RUN, script, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


def test_every_model_trains_and_detects_without_a_wait(environment):
    assert len(lines_of(environment, ROOT / "tests/cuda_stub/models.py")) == 18


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_training_loop_never_waits_within_a_step(environment, tmp_path, precision):
    script = ROOT / "tests/cuda_stub/training.py"
    assert lines_of(environment, script, tmp_path, precision)[-1] == "24 steps; waits: {}"


@pytest.mark.parametrize("case", BOUNDS)
def test_launches_and_memory_of_a_step(environment, case):
    found = json.loads(lines_of(environment, ROOT / "tools/benchmarks/launches.py", "--case", case)[-1])
    launches, gigabytes = BOUNDS[case]
    assert found["launches"] <= launches and found["GiB"] <= gigabytes


def test_nms_and_matching_need_little_memory(environment):
    nms, matching = map(float, lines_of(environment, ROOT / "tests/cuda_stub/memory.py"))
    assert nms <= 50 * 2**20  # 12,000 boxes of one image
    assert matching <= 2**30  # 217,413 anchors with 1,024 ground truths, 16 images


@pytest.mark.parametrize("section", ["C", "E", "G"])
def test_sections_of_the_benchmark_run_to_their_end(environment, section):
    arguments = "--device", "cuda", "--tiny", "--run", section
    found = json.loads(lines_of(environment, ROOT / "tools/benchmarks/gpu.py", *arguments)[-1])
    assert found and not any(isinstance(value, str) for value in found.values())  # an error's text
