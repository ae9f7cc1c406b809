"""Images a second of `detect serve` beside the plain predictor, answers beside bad bodies, and memory of a huge body.

    python tools/benchmarks/serve.py --ckpt runs/bccd/checkpoints/best.ckpt --images data/bccd/JPEGImages --write

The service runs in a process of its own, on the same cores as the client; 16 requests are sent at a time. Blocks of
100 images go to the service and to `Predictor.predict` in turns, on a quiet machine only (see `alternating.py`).
"""

from __future__ import annotations

import argparse
import http.client
import io
import os
import re
import shlex
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import date
from itertools import cycle, islice
from pathlib import Path
from threading import local
from typing import Any

import cv2
import numpy as np
from alternating import Gate, duration, machine, physical_cores
from PIL import Image

import detect
from detect.cores import SPINS
from detect.prediction.predictor import Predictor
from detect.serve.answers import body_of

RESULTS = Path(__file__).with_name("RESULTS.md")
BLOCK, BLOCKS, CLIENTS = 100, 5, 16


class Server:
    """A running `detect serve`."""

    def __init__(self, checkpoint: Path) -> None:
        command = [sys.executable, "-m", "detect", "serve", "--ckpt", str(checkpoint), "--port", "0"]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        found = re.search(r"127\.0\.0\.1:(\d+)", self.process.stderr.readline())
        assert found is not None
        self.port = int(found[1])
        self.log = ThreadPoolExecutor(1).submit(self.process.stderr.read)  # or the pipe would fill up
        self.connections = local()
        self.get("/ready")

    def get(self, path: str) -> bytes:
        """Return the answer to a GET request, once the service listens."""
        for _ in range(600):
            with suppress(ConnectionError):
                connection = http.client.HTTPConnection("127.0.0.1", self.port)
                connection.request("GET", path)
                return connection.getresponse().read()
            time.sleep(0.1)
        raise RuntimeError("the service did not start")

    def post(self, body: bytes) -> tuple[int, bytes, float]:
        """Return status, body and seconds of a prediction."""
        start = time.perf_counter()
        if not hasattr(self.connections, "one"):
            self.connections.one = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        connection = self.connections.one
        connection.request("POST", "/predict", body)
        answer = connection.getresponse()
        return answer.status, answer.read(), time.perf_counter() - start

    def peak(self) -> int:
        """Return the highest resident memory so far in bytes."""
        found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{self.process.pid}/status").read_text())
        assert found is not None
        return int(found[1]) * 1024

    def send_chunked(self, mebibytes: int) -> int:
        """Send a chunked body; return how many MiB were sent before the connection was closed."""
        piece, sent = b"100000\r\n" + bytes(2**20) + b"\r\n", 0
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection:
            connection.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
            while sent < mebibytes:
                connection.sendall(piece)
                sent += 1
        return sent


def bad_bodies(good: bytes) -> list[bytes]:
    """Return 20 kinds of bodies that are no image, a damaged one or one too large."""
    generator = np.random.default_rng(0)
    noise = generator.integers(0, 256, 20_000, np.uint8).tobytes()
    bomb = cv2.imencode(".png", np.zeros((9000, 9000), np.uint8))[1].tobytes()
    large = io.BytesIO()
    Image.fromarray(generator.integers(0, 256, (3000, 3000, 3), np.uint8)).save(large, "BMP")
    return [
        b"",
        b"\0",
        noise,
        good[: len(good) // 2],
        good[:-2],
        good[:20],
        noise[:100] + good,
        good[:300] + noise[:2000] + b"\xff\xd9",
        bomb,
        large.getvalue(),
        b"GIF89a" + noise[:50],
        b"\x89PNG\r\n\x1a\n" + noise,
        b"RIFF\x10\0\0\0WEBPVP8 " + noise[:100],
        b"II*\0" + noise[:500],
        b"P6 100000 100000 255\n",
        b"P6 10 10 255\n" + noise[:10],
        b"%PDF-1.7\n" + noise,
        b"PK\x03\x04" + noise,
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"https://example.com/cat.jpg",
    ]


def throughput(server: Server, predictor: Predictor, bodies: Sequence[bytes]) -> dict[str, Any]:
    """Return images a second of both sides, medians over the blocks, and the quantiles of the answers' times."""
    speeds: dict[str, list[float]] = {"service": [], "predictor": []}
    gate, seconds = Gate("cpu"), []
    with ThreadPoolExecutor(CLIENTS) as pool:
        for block in range(-1, BLOCKS):  # the first warms up
            chosen = list(islice(cycle(bodies), max(block, 0) * BLOCK, (max(block, 0) + 1) * BLOCK))
            gate.wait()
            start = time.perf_counter()
            answers = list(pool.map(server.post, chosen))
            between = time.perf_counter()
            assert all(status == 200 for status, _, _ in answers)
            gate.wait()
            begun = time.perf_counter()
            found = list(predictor.predict(chosen, workers=2))
            end = time.perf_counter()
            assert [body for _, body, _ in answers] == [body_of(result, "detect", 0) for result in found]
            if block >= 0:
                speeds["service"].append(BLOCK / (between - start))
                speeds["predictor"].append(BLOCK / (end - begun))
                seconds += [took for _, _, took in answers]
    return {
        **{name: statistics.median(values) for name, values in speeds.items()},
        "ratio": statistics.median(a / b for a, b in zip(speeds["service"], speeds["predictor"], strict=True)),
        "p50": statistics.median(seconds),
        "p99": statistics.quantiles(seconds, n=100)[-1],
    }


def beside_bad_bodies(server: Server, predictor: Predictor, bodies: Sequence[bytes]) -> tuple[int, int, dict[int, int]]:
    """Return the number of good images, of equal answers to them, and of each status of the bad ones."""
    good, bad = list(islice(cycle(bodies), 100)), bad_bodies(bodies[0]) * 5
    both = [body for pair in zip(good, bad, strict=True) for body in pair]

    def post(body: bytes) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
        connection.request("POST", "/predict", body)
        answer = connection.getresponse()
        return answer.status, answer.read()

    with ThreadPoolExecutor(CLIENTS) as pool:
        answers = list(pool.map(post, both))
    expected = [body_of(result, "detect", 0) for result in predictor.predict(good)]
    equal = sum(answer == (200, body) for answer, body in zip(answers[::2], expected, strict=True))
    statuses = [status for status, _ in answers[1::2]]
    return len(good), equal, {status: statuses.count(status) for status in sorted(set(statuses))}


def main() -> None:
    """Measure and print, and append to RESULTS.md with --write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ckpt", type=Path, required=True, help="checkpoint")
    parser.add_argument("--images", type=Path, required=True, help="folder of JPEG files")
    parser.add_argument("--write", action="store_true", help="append the results to RESULTS.md")
    options = parser.parse_args()
    if "GOMP_SPINCOUNT" not in os.environ:  # the command sets it before torch is loaded
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | {"GOMP_SPINCOUNT": SPINS})
    threads = physical_cores()
    bodies = [path.read_bytes() for path in sorted(options.images.glob("*.jpg"))[: BLOCK * BLOCKS]]
    predictor = detect.load(options.ckpt)
    assert isinstance(predictor, Predictor)
    server = Server(options.ckpt)
    try:
        speed = throughput(server, predictor, bodies)
        good, equal, statuses = beside_bad_bodies(server, predictor, bodies)
        before = server.peak()
        sent = server.send_chunked(1024)
        grown = server.peak() - before
    finally:
        server.process.terminate()
    lines = [
        f"## {date.today()}, detect serve",
        "",
        f"`python {shlex.join(sys.argv)}`, {machine(threads)}",
        "",
        f"- {BLOCK * BLOCKS} requests, {CLIENTS} at a time: {speed['service']:.1f} images a second; the predictor "
        f"{speed['predictor']:.1f}; ratio {speed['ratio']:.2f} (target 0.9). An answer takes {duration(speed['p50'])} "
        f"(median) and {duration(speed['p99'])} (99 %). All answers equal the predictor's byte for byte.",
        f"- beside as many bodies of 20 bad kinds: {equal} of {good} answers equal the predictor's; the bad ones got "
        + ", ".join(f"{count} × {status}" for status, count in statuses.items())
        + ".",
        f"- a chunked body of 1 GiB: the connection was closed after {sent} MiB; the peak of memory grew by "
        f"{grown / 2**20:.0f} MiB.",
    ]
    print("\n".join(lines))
    if options.write:
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write("\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
