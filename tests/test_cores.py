"""Cores of this process, and OpenMP's threads on them."""

import os
import subprocess
import sys

import pytest

from detect import cores
from detect.cores import SPINS, available_cores, share_cores

NAMES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


@pytest.fixture(autouse=True)
def before_torch(monkeypatch):
    """Unset the variables and forget torch; after a test all is as before."""
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    for name in NAMES:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.fixture
def machine(monkeypatch):
    """Return a function that sets the process's affinity and the quotas of its cgroups."""

    def set_to(affinity: int, *quotas: float) -> None:
        monkeypatch.setattr(cores.os, "sched_getaffinity", lambda _: set(range(affinity)), raising=False)
        monkeypatch.setattr(cores, "_quotas", lambda root: iter(quotas))

    return set_to


@pytest.mark.parametrize(
    ("affinity", "quotas", "expected"),
    [(8, (), 8), (8, (2.0,), 2), (2, (8.0,), 2), (8, (2.5,), 3), (8, (0.25,), 1), (8, (4.0, 2.0, 6.0), 2)],
)
def test_cores_are_the_affinity_or_the_smallest_quota(machine, affinity, quotas, expected):
    machine(affinity, *quotas)
    assert available_cores() == expected


def test_threads_sleep_and_are_left_to_torch_without_a_quota(machine):
    machine(8)
    share_cores()
    assert {name: os.environ.get(name) for name in NAMES if name in os.environ} == {"GOMP_SPINCOUNT": SPINS}


def test_a_quota_limits_the_threads(machine):
    machine(8, 2.0)
    share_cores()
    assert os.environ["OMP_NUM_THREADS"] == "2" and os.environ["GOMP_SPINCOUNT"] == SPINS


@pytest.mark.parametrize(
    ("chosen", "kept"),
    [
        ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"),
        ("GOMP_SPINCOUNT", "GOMP_SPINCOUNT"),
        ("KMP_BLOCKTIME", "GOMP_SPINCOUNT"),
        ("OMP_NUM_THREADS", "OMP_NUM_THREADS"),
        ("MKL_NUM_THREADS", "OMP_NUM_THREADS"),
    ],
)
def test_what_the_user_chose_stays(machine, monkeypatch, chosen, kept):
    machine(8, 2.0)
    monkeypatch.setenv(chosen, "5")
    share_cores()
    assert os.environ[chosen] == "5" and os.environ.get(kept) == ("5" if kept == chosen else None)


# ---- cgroups ---------------------------------------------------------------------------------------------------------


def write(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, []),
        ({"proc/self/cgroup": "0::/\n"}, []),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, []),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, [1.5]),
        (  # nested groups of version 2, innermost first
            {
                "proc/self/cgroup": "0::/user/job\n",
                "sys/fs/cgroup/user/job/cpu.max": "400000 100000\n",
                "sys/fs/cgroup/user/cpu.max": "200000 100000\n",
            },
            [4.0, 2.0],
        ),
        (  # version 1 in a container, which sees its own group at the top
            {
                "proc/self/cgroup": "4:memory:/docker/ab\n3:cpu,cpuacct:/docker/ab\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            [0.5],
        ),
        (
            {
                "proc/self/cgroup": "1:cpu:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            [],
        ),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "nonsense\n"}, []),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "1 0\n"}, []),
    ],
)
def test_quotas_are_read_from_the_cgroups(files, expected, tmp_path):
    assert list(cores._quotas(write(tmp_path, files))) == expected


# ---- before torch loads ----------------------------------------------------------------------------------------------


def printed(code):
    kept = {name: value for name, value in os.environ.items() if name not in NAMES}
    done = subprocess.run([sys.executable, "-c", code], env=kept, capture_output=True, text=True, check=True)
    return done.stdout.split()[-1]


def test_the_command_sets_it_before_torch_loads():
    code = (
        "import os, sys; from detect.cli import main\n"
        "assert 'torch' not in sys.modules and 'GOMP_SPINCOUNT' not in os.environ\n"
        "assert main(['configs']) == 0; print(os.environ['GOMP_SPINCOUNT'])"
    )
    assert printed(code) == SPINS


@pytest.mark.parametrize(("first", "expected"), [("", SPINS), ("import torch", "None")])
def test_the_package_sets_it_on_first_use_unless_torch_is_loaded(first, expected):
    """Once torch is loaded the variable would only reach the user's child processes."""
    code = f"{first}\nimport os, detect; assert 'GOMP_SPINCOUNT' not in os.environ; detect.Detections\n"
    assert printed(f"{code}print(os.environ.get('GOMP_SPINCOUNT'))") == expected
