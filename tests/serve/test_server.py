"""The process of the service, and the command's mistakes."""

import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import cv2
import httpx
import numpy as np
import pytest

from detect.cli import main
from detect.errors import UserError
from detect.serve.server import read_keys

ROOT = Path(__file__).parents[2]
PIXEL = cv2.imencode(".png", np.full((1, 1), 100, np.uint8))[1].tobytes()


@pytest.fixture
def process(monkeypatch):
    """Return a running service, whose answers take a fifth of a second, and its address."""
    command = [sys.executable, Path(__file__).parent / "fake_detector.py", "0.2"]
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    address = re.search(r"http://127\.0\.0\.1:\d+", running.stderr.readline())[0]
    with httpx.Client(transport=httpx.HTTPTransport(retries=5)) as client:
        client.get(f"{address}/ready", timeout=20).raise_for_status()
    yield running, address
    running.kill()
    running.communicate()


def post(address: str) -> int:
    return httpx.post(f"{address}/predict", content=PIXEL, timeout=20).status_code


def arrived(address: str) -> int:
    """Return the number of predictions that were asked for."""
    text = httpx.get(f"{address}/metrics", timeout=20).text
    counts = re.findall(
        r'^detect_requests_(?:in_progress|total\{path="/predict",status="200"\}) (.*)$', text, re.MULTILINE
    )
    return round(sum(map(float, counts)))


def test_a_terminated_service_answers_what_it_has(process):
    running, address = process
    with ThreadPoolExecutor(6) as pool:
        answers = [pool.submit(post, address) for _ in range(6)]
        while arrived(address) < 6:
            time.sleep(0.01)
        running.send_signal(signal.SIGTERM)
        assert [answer.result() for answer in answers] == [200] * 6
    assert running.wait(20) in (0, -signal.SIGTERM)
    with pytest.raises(httpx.ConnectError):
        post(address)


def test_reading_stops_at_the_limit(process):
    """Of a chunked body of 200 MiB, at most twice the limit and what sockets buffer is taken."""
    _, address = process
    host, port = address.removeprefix("http://").split(":")
    piece = b"100000\r\n" + bytes(2**20) + b"\r\n"
    sent, answer = 0, b""
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        with suppress(OSError):  # the server has closed the connection
            while sent < 200:
                connection.sendall(piece)
                sent += 1
        with suppress(OSError):  # the rest of the body was still on its way
            answer = connection.recv(1000)
    assert 32 <= sent < 60
    assert answer == b"" or answer.startswith(b"HTTP/1.1 413")
    assert post(address) == 200


def test_a_client_that_sends_all_first_sees_why_its_body_is_refused(process):
    _, address = process
    answer = httpx.post(f"{address}/predict", content=bytes(20 * 2**20), timeout=20)
    assert answer.status_code == 413 and "more than 16777216 bytes" in answer.json()["error"]


# ---- the command -----------------------------------------------------------------------------------------------------


def test_a_port_in_use_is_one_line(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("detect.load", lambda path: pytest.fail("not needed"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["serve", "--ckpt", "none.onnx", "--port", port]) == 2
    assert re.fullmatch(
        r"detect: error: 127\.0\.0\.1:\d+: .*in use.*; choose another --host or --port\n", capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--max-batch", "0"], "--max-batch: '0'; give a whole number of 1 or more"),
        (["--max-mb", "-1"], "--max-mb: '-1'; give a number above 0"),
        (["--timeout", "soon"], "--timeout: 'soon'; give a number above 0"),
        (["--port", "70000"], "--port: '70000'; give a number up to 65535"),
        (["--host", "no.such.host.invalid"], "no.such.host.invalid: "),
        (["--api-key-file", "missing.txt"], "missing.txt: cannot be read"),
        (["--ckpt", "missing.ckpt"], "missing.ckpt"),
        (["--ckpt", "missing.onnx", "--device", "cpu"], "fixed in an exported model"),
    ],
)
def test_mistakes_are_one_line(words, text, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        code = main(["serve", "--ckpt", "missing.ckpt", *words])
    except SystemExit as end:
        code = end.code
    errors = capsys.readouterr().err
    assert code == 2 and text in errors and "Traceback" not in errors


def test_keys_are_read_from_a_file(tmp_path):
    path = tmp_path / "keys.txt"
    path.write_text("# for the web shop\nabc \n\n  def\n")
    assert read_keys(path) == ["abc", "def"]
    path.write_text("# none\n")
    with pytest.raises(UserError, match=r"keys\.txt: has no key; write one in a line"):
        read_keys(path)
