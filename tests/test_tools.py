"""The scripts in tools/ start and print their usage."""

import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[1] / "tools"
SCRIPTS = sorted(path for path in TOOLS.rglob("*.py") if "(main(" in (text := path.read_text()) or "__main__" in text)


def test_the_scripts_exist():
    assert {path.name for path in SCRIPTS} >= {"train.py", "eval.py", "step.py", "bccd.py"}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
@pytest.mark.slow
def test_a_script_prints_its_usage(path):
    done = subprocess.run([sys.executable, path, "--help"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout.startswith("usage: ") and not done.stderr
