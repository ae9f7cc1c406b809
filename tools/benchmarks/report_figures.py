"""How long the report's statistics take on a made set of COCO's size.

    python tools/benchmarks/report_figures.py --images 5000 --resamples 1000 --threads 2

Truths: 7 an image on average, one in a hundred a crowd, in 80 classes of which the k-th is 1/k as frequent as the
first. Detections: 100 an image, three for each truth, near it and mostly of its class, and the others anywhere.
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path

import numpy as np
import torch

from detect.data.dataset import Dataset, Record
from detect.evaluation.breakdown import analyse
from detect.evaluation.coco import Prediction

CLASSES = 80


def made(images: int, per_image: int = 100) -> tuple[Dataset, list[Prediction]]:
    """The set: the same one for the same arguments."""
    random = np.random.default_rng(0)
    frequency = 1 / np.arange(1, CLASSES + 1)
    frequency /= frequency.sum()

    def anywhere(n: int) -> np.ndarray:
        corner = random.uniform(0, 400, (n, 2))
        return np.concatenate([corner, corner + np.exp(random.uniform(2, 6, (n, 2)))], axis=1)

    records, predictions = [], []
    for number in range(images):
        n = min(int(random.geometric(1 / 7.3)), 90)
        boxes, labels = anywhere(n).astype(np.float32), random.choice(CLASSES, n, p=frequency)
        areas = 0.6 * np.prod(boxes[:, 2:] - boxes[:, :2], axis=1, dtype=np.float64)  # as masks have them
        crowd = random.random(n) < 0.01
        records.append(Record(number, Path(f"/{number}.jpg"), 640, 480, boxes, labels, crowd, np.zeros(n, bool), areas))
        found, classes = anywhere(per_image), random.choice(CLASSES, per_image, p=frequency)
        scores = random.beta(0.5, 6, per_image)
        near = min(per_image, 3 * n)
        of = random.integers(0, n, near)
        sides = np.tile(boxes[of, 2:] - boxes[of, :2], 2)
        found[:near] = boxes[of] + random.normal(0, 0.09, (near, 4)) * sides
        found[:, 2:] = np.maximum(found[:, 2:], found[:, :2] + 1)
        classes[:near] = np.where(random.random(near) < 0.8, labels[of], classes[:near])
        scores[:near] = random.beta(2, 2, near)
        predictions.append(Prediction(number, found.astype(np.float32), scores.astype(np.float32), classes))
    names = tuple(map(str, range(CLASSES)))
    return Dataset(Path("/"), "val", "coco", names, tuple(range(CLASSES)), tuple(records)), predictions


def main() -> None:
    """Prints the time and the most memory ever held."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    analyse(*made(20), resamples=2)  # compiles
    dataset, predictions = made(options.images)
    begun = time.perf_counter(), time.process_time()
    analyse(dataset, predictions, resamples=options.resamples)
    taken, busy = time.perf_counter() - begun[0], time.process_time() - begun[1]
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{options.images} images: {taken:.1f} s, of which {busy:.1f} s busy; at most {most:.2f} GiB")


if __name__ == "__main__":
    main()
