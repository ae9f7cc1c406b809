"""The distribution `rcnn-family`, which holds the package `detect`."""

import os
import re
import shlex
import shutil
import site
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest

from detect.config.included import config_names
from detect.errors import install_command
from detect.versions import __version__

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


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """Build sdist and wheel, install the wheel into a new environment, and return the folder of its programs.

    The environment sees the packages of this one, so that neither the build nor the installation needs the network.
    """
    folder = tmp_path_factory.mktemp("packaging")
    source = folder / "source"
    for path in tracked_files():
        (source / path.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, source / path.relative_to(ROOT))
    dist = folder / "dist"
    run([sys.executable, "-m", "build", "--no-isolation", "--outdir", dist, source], folder)
    (wheel,) = dist.glob("*.whl")
    (sdist,) = dist.glob("*.tar.gz")
    assert (
        wheel.name == f"rcnn_family-{__version__}-py3-none-any.whl"
        and sdist.name == f"rcnn_family-{__version__}.tar.gz"
    )
    environment = folder / "environment"
    venv.create(environment, with_pip=False)
    (packages,) = environment.glob("lib/python*/site-packages")
    run([sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", packages, wheel], folder)
    # A .pth file puts this environment's packages behind those of the new one.
    (packages / "others.pth").write_text("\n".join(map(str, site.getsitepackages())))
    return environment / "bin"


def run(command, cwd) -> str:
    # Neither the checkout, which `python -c` looks into first, nor a choice of threads may reach the new environment.
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "OMP"))}
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=300, env=kept, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="the environment has other folders on Windows")
def test_the_wheel_works_outside_of_the_checkout(installed, tmp_path):
    python = installed / "python"
    where = run([python, "-c", "import detect; print(detect.__file__); detect.Detections"], tmp_path)
    assert Path(where.strip()).is_relative_to(installed.parent)
    assert "example: detect demo" in run([python, "-m", "detect", "demo", "--help"], tmp_path)
    assert "61,706" in run([python, "-m", "detect", "model", "lenet_digits", "--classes", "10"], tmp_path)
    names = {line.split()[0] for line in run([python, "-m", "detect", "configs"], tmp_path).splitlines()}
    assert names >= set(config_names())
    assert run([python, "-m", "detect", "--version"], tmp_path).startswith(f"detect {__version__}, torch ")


@pytest.mark.slow
def test_the_distribution_has_its_command_extras_and_data_files(installed, tmp_path):
    code = "from importlib.metadata import distribution as d; r = d('rcnn-family')\n"
    code += "print(r.version, *r.metadata.get_all('Provides-Extra'), *(e.value for e in r.entry_points), *r.files)"
    printed = run([installed / "python", "-c", code], tmp_path).split()
    assert printed[0] == __version__ and {*PROJECT["optional-dependencies"], "detect.cli:main"} <= set(printed)
    tracked = {path.relative_to(ROOT).as_posix() for path in tracked_files() if path.is_relative_to(ROOT / "detect")}
    assert tracked <= set(printed)
    assert not [name for name in printed if name.startswith(("tests/", "tools/", "configs/"))]


@pytest.mark.slow
def test_the_command_of_a_message_finds_the_installed_distribution(installed, tmp_path):
    """Without an index: it adds the extra's packages to the distribution that is there."""
    command = shlex.split(install_command("all"))
    printed = run([installed / "python", "-m", *command, "--dry-run", "--no-index"], tmp_path)
    assert f"already satisfied: {command[-1]}" in printed and "Would install" not in printed
