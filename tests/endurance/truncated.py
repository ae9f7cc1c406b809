"""How many damaged photographs of a real data set are found before the first training step.

    python tests/endurance/truncated.py [--quick]

The photographs of the sets in DETECT_DATA are cut at 5, 50 and 95 % of their bytes, emptied, and replaced by text; each
in its own format and saved as PNG. The data are read as `detect train` reads them, and by torchvision and OpenCV.
"""

import argparse
import os
import sys
import tempfile
from collections import Counter
from pathlib import Path

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import cv2
import torchvision
from PIL import Image
from torchvision.io import decode_image, read_file

from detect.data.read import read
from detect.errors import UserError

DATA = Path(os.environ.get("DETECT_DATA", Path(__file__).parents[2] / "../shared/data"))
XML = (
    "<annotation><object><name>a</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
    "</object></annotation>"
)
DAMAGES = {
    "cut at 5 %": lambda content: content[: len(content) // 20],
    "cut at 50 %": lambda content: content[: len(content) // 2],
    "cut at 95 %": lambda content: content[: len(content) * 19 // 20],
    "empty": lambda content: b"",
    "text": lambda content: b"Dear photographer,\n" * (len(content) // 19 + 1),
}


def plant(root: Path, photographs: list[Path]) -> dict[str, str]:
    """Writes a VOC data set, one image in two of it damaged; gives the damage of each damaged file."""
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    planted, stems = {}, []
    for number, photograph in enumerate(photographs):
        contents = {"jpg": photograph.read_bytes()}
        if number % 4 == 0:
            Image.open(photograph).save(root / "whole.png")
            contents["png"] = (root / "whole.png").read_bytes()
        for suffix, content in contents.items():
            files = {f"{number}-{suffix}-whole": content}
            damage = list(DAMAGES)[number % len(DAMAGES)]
            files[f"{number}-{suffix}-bad"] = DAMAGES[damage](content)
            planted[f"{number}-{suffix}-bad.{suffix}"] = f"{suffix} {damage}"
            for stem, bytes_ in files.items():
                (root / "JPEGImages" / f"{stem}.{suffix}").write_bytes(bytes_)
                (root / "Annotations" / f"{stem}.xml").write_text(XML)
                stems.append(stem)
    (root / "ImageSets" / "Main" / "train.txt").write_text("\n".join(stems))
    return planted


def is_read(decode, path: Path) -> bool:
    try:
        return decode(path) is not None
    except (RuntimeError, OSError, ValueError, cv2.error):
        return False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer photographs")
    options = parser.parse_args()
    photographs = sorted(DATA.glob("**/JPEGImages/*.jpg"))
    photographs = photographs[:: max(1, len(photographs) // (25 if options.quick else 400))]
    if len(photographs) < 20:
        print(f"truncated: no photographs in {DATA}; name their folder with DETECT_DATA")
        return 1
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "data")
        planted = plant(root, photographs)
        refused = False
        try:
            read(root, "train", progress=False)
        except UserError as error:
            refused = f"{len(planted)} × unreadable-image" in str(error)
        data = read(root, "train", skip_unreadable=True, progress=False)
        found = {defect.path.name for defect in data.repaired}
        peers = {
            f"torchvision {torchvision.__version__}": lambda path: decode_image(read_file(str(path))),
            f"OpenCV {cv2.__version__}": lambda path: cv2.imread(str(path)),
        }
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libjpeg and libpng mutter there
        for name, decode in peers.items():
            silent = Counter(planted[file] for file in planted if is_read(decode, root / "JPEGImages" / file))
            print(f"  {name} reads {silent.total()} of the {len(planted)} without an error: {dict(silent)}")
    good = found == set(planted) and refused and len(data) == len(planted)
    print(
        f"truncated: {len(found & set(planted))} / {len(planted)} damaged images found, "
        f"{len(found - set(planted))} of {len(planted)} whole ones refused, training "
        f"{'stops' if refused else 'goes on'} by default ({'passed' if good else 'FAILED'})"
    )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
