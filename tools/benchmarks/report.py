"""Measure the time to write a report on a synthetic data set of COCO's size, without the COCO metrics, and its size.

    python tools/benchmarks/report.py --photographs data/bccd/JPEGImages

Ground truths: 7 per image on average, one in a hundred a crowd region, in 80 classes; the k-th is 1/k as frequent as
the first. Detections: 100 per image, three near each ground truth and mostly of its class, the others anywhere. The
photographs stand in for the images, since the report shows some of them.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from detect.data.dataset import Dataset
from detect.data.records import Record
from detect.evaluation.coco import Prediction
from detect.report.write import Origin, write_report

CLASSES = 80


def synthetic(images: int, photographs: Sequence[Path], per_image: int = 100) -> tuple[Dataset, list[Prediction]]:
    """Return a data set and predictions, the same ones for the same arguments."""
    random = np.random.default_rng(0)
    frequency = 1 / np.arange(1, CLASSES + 1)
    frequency /= frequency.sum()

    def random_boxes(n: int) -> np.ndarray:
        corner = random.uniform(0, 400, (n, 2))
        return np.concatenate([corner, corner + np.exp(random.uniform(2, 6, (n, 2)))], axis=1)

    records, predictions = [], []
    for number in range(images):
        n = min(int(random.geometric(1 / 7.3)), 90)
        boxes, labels = random_boxes(n).astype(np.float32), random.choice(CLASSES, n, p=frequency)
        areas = 0.6 * np.prod(boxes[:, 2:] - boxes[:, :2], axis=1, dtype=np.float64)  # about those of masks
        crowd = random.random(n) < 0.01
        path = photographs[number % len(photographs)]
        records.append(Record(number, path, 640, 480, boxes, labels, crowd, np.zeros(n, bool), areas))
        detected, classes = random_boxes(per_image), random.choice(CLASSES, per_image, p=frequency)
        scores = random.beta(0.5, 6, per_image)
        near = min(per_image, 3 * n)
        target = random.integers(0, n, near)
        sides = np.tile(boxes[target, 2:] - boxes[target, :2], 2)
        detected[:near] = boxes[target] + random.normal(0, 0.09, (near, 4)) * sides
        detected[:, 2:] = np.maximum(detected[:, 2:], detected[:, :2] + 1)
        classes[:near] = np.where(random.random(near) < 0.8, labels[target], classes[:near])
        scores[:near] = random.beta(2, 2, near)
        predictions.append(Prediction(number, detected.astype(np.float32), scores.astype(np.float32), classes))
    names = tuple(map(str, range(CLASSES)))
    return Dataset(Path("/"), "val", "coco", names, tuple(range(CLASSES)), tuple(records)), predictions


def main() -> None:
    """Print the time, the peak memory of the process, and the size of the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=Path, required=True, help="a folder of JPEGs")
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    photographs = sorted(options.photographs.glob("*.jpg"))
    with TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        write_report(page, *synthetic(20, photographs), Origin("compile"))
        dataset, predictions = synthetic(options.images, photographs)
        start = time.perf_counter(), time.process_time()
        write_report(page, dataset, predictions, Origin("benchmark"))
        seconds, cpu_seconds = time.perf_counter() - start[0], time.process_time() - start[1]
        size = page.stat().st_size / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{options.images} images: {seconds:.1f} s ({cpu_seconds:.1f} s of CPU), {peak:.2f} GiB peak memory, "
        f"a page of {size:.1f} MB"
    )


if __name__ == "__main__":
    main()
