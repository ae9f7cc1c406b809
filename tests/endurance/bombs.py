"""Measure memory and time of reading a small image with gigabytes of pixels, in detect, OpenCV and Pillow.

    python tests/endurance/bombs.py [--quick]

The file is a valid PNG of one colour. Each reader runs in its own process, which a limit of the system stops at 8 GB.
"""

import argparse
import resource
import struct
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

READERS = {
    "detect": "from detect.data.decode import decode\nfrom pathlib import Path\nstart()\ndecode(Path(path))",
    "OpenCV": "import cv2\nstart()\nassert cv2.imread(path) is not None",
    "Pillow": "from PIL import Image\nstart()\nImage.open(path).convert('RGB')",
}
MEASURE = """
import sys, time
path = sys.argv[1]
def start():
    global started
    started = time.perf_counter()
try:
    exec(sys.argv[2])
    outcome = "reads it"
except BaseException as error:
    outcome = f"refuses it ({type(error).__name__})"
seconds = time.perf_counter() - started
peak = next(int(line.split()[1]) // 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(f"{outcome}: {seconds:.3f} s, {peak} MB", peak, seconds, outcome.startswith("refuses"), sep="|")
"""


def write_png(path: Path, side: int) -> None:
    """Write an image of one colour row by row, so that it is never in memory as a whole."""
    packer = zlib.compressobj(9)
    row = bytes(1 + 3 * side)
    data = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    with path.open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        for kind, content in ((b"IHDR", header), (b"IDAT", data), (b"IEND", b"")):
            file.write(struct.pack(">I", len(content)) + kind + content)
            file.write(struct.pack(">I", zlib.crc32(kind + content)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smaller bomb")
    side = 12000 if parser.parse_args().quick else 20000
    good = False
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "bomb.png")
        write_png(path, side)
        for name, code in READERS.items():
            done = subprocess.run(
                [sys.executable, "-c", MEASURE, path, code],
                capture_output=True,
                text=True,
                preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (2**33, 2**33)),
            )
            line, *numbers = done.stdout.strip().split("|") if done.stdout else ("crashes", "0", "0", "False")
            print(f"  {name} {line}")
            if name == "detect":
                ours, good = line, int(numbers[0]) < 200 and float(numbers[1]) < 0.1 and numbers[2] == "True"
        size = path.stat().st_size // 1024
    print(f"bombs: a PNG of {size} KB and {side} × {side} pixels: {ours} ({'passed' if good else 'FAILED'})")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
