import os

import pytest

from detect.training import clock


@pytest.fixture
def now(monkeypatch):
    """Sets the time."""

    def set_time(seconds: float) -> None:
        monkeypatch.setattr(clock.time, "time", lambda: seconds)

    return set_time


def written(folder, seconds: float) -> None:
    (folder / "last.ckpt").touch()
    for path in folder.iterdir():
        os.utime(path, (seconds, seconds))


def test_a_folder_that_knows_nothing(tmp_path):
    assert not clock.finished(tmp_path / "gone") and clock.seconds(tmp_path) is None


def test_one_session(tmp_path, now):
    now(1000.0)
    clock.begin(tmp_path, resume=False)
    assert not clock.finished(tmp_path) and clock.seconds(tmp_path) is None
    now(1007.0)
    clock.end(tmp_path)
    assert clock.finished(tmp_path) and clock.seconds(tmp_path) == 7.0


def test_a_killed_session_lasted_until_it_last_wrote_something(tmp_path, now):
    now(1000.0)
    clock.begin(tmp_path, resume=False)
    written(tmp_path, 1020.0)
    now(5000.0)
    clock.begin(tmp_path, resume=True)
    written(tmp_path, 5003.0)
    now(9000.0)
    clock.begin(tmp_path, resume=True)
    now(9001.0)
    clock.end(tmp_path)
    assert clock.seconds(tmp_path) == 20 + 3 + 1


def test_a_finished_run_may_go_on(tmp_path, now):
    now(1000.0)
    clock.begin(tmp_path, resume=False)
    now(1002.0)
    clock.end(tmp_path)
    now(3000.0)
    clock.begin(tmp_path, resume=True)
    assert not clock.finished(tmp_path)
    now(3001.0)
    clock.end(tmp_path)
    assert clock.seconds(tmp_path) == 3.0


def test_what_a_run_took_before_it_was_noted_is_not_known(tmp_path, now):
    now(1000.0)
    clock.begin(tmp_path, resume=True)
    written(tmp_path, 1001.0)
    clock.begin(tmp_path, resume=True)
    clock.end(tmp_path)
    assert clock.finished(tmp_path) and clock.seconds(tmp_path) is None
