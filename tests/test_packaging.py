"""The distribution `rcnn-family`, which holds the package `detect`."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from detect.errors import install_command

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# On the package index, `detect` is another project.
OTHER_PROJECT = re.compile(
    r"pip install\s+(?:-\S+\s+)*['\"]?detect\b|['\"]detect\[\w|pip install '?(?:timm|safetensors)\b"
)


def tracked_files() -> list[Path]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in done.stdout.split("\0") if name]


@pytest.mark.parametrize("text", ["pip install detect", "pip install -U 'detect[onnx]'", "'detect[all]'"])
def test_commands_that_install_another_project_are_recognised(text):
    assert OTHER_PROJECT.search(text)


def test_nothing_says_to_install_the_other_project_of_that_name():
    texts = {path: path.read_bytes().decode("utf-8", "replace") for path in tracked_files() if path.is_file()}
    assert len(texts) > 100
    found = [
        f"{path}: {hit[0]}"
        for path, text in texts.items()
        if path != Path(__file__)
        for hit in OTHER_PROJECT.finditer(text)
    ]
    assert not found


def test_every_extra_that_a_message_names_exists():
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "detect").rglob("*.py")]
    named = {name for text in sources for name in re.findall(r"install_command\([\"'](\w+)[\"']\)", text)}
    assert named and named | {"pandas", "supervision"} <= set(PROJECT["optional-dependencies"])
    assert install_command("onnx") == f"pip install '{PROJECT['name']}[onnx]'"
