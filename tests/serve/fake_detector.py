"""A detector whose one box in an image tells the image's size and first pixel; run as a script, it is served."""

import sys
import time

import numpy as np

from detect.errors import UserError
from detect.prediction.result import Result

CLASSES = ("cat", "dog")


class FakeDetector:
    """Detects a box of class `cat` with score 0.9, and one of class `dog` with score 0.4, in every image.

    A black image is an error, and so is every batch in which it is. A score threshold below 0.1 is refused.
    """

    classes, category_ids, score, min_score = CLASSES, (3, 5), 0.5, 0.1

    def __init__(self, seconds: float = 0.0, predicts_masks: bool = False) -> None:
        self.seconds, self.predicts_masks = seconds, predicts_masks
        self.batches: list[int] = []

    def canvas(self, height: int, width: int) -> tuple[int, int]:
        return -(-height // 32) * 32, -(-width // 32) * 32

    def check_options(self, *, score: float = 0.5) -> None:
        if score < self.min_score:
            raise UserError(f"score: {score}; give 0.1 or more")

    def predict(self, source, *, score, batch_size, workers):
        assert batch_size == len(source) and workers == 0
        self.batches.append(batch_size)
        time.sleep(self.seconds)
        if any(frame.pixels.max() == 0 for frame in source):
            raise ValueError("a black image")
        for frame in source:
            height, width = frame.pixels.shape[:2]
            red = float(frame.pixels[0, 0, 0])
            masks = np.ones((2, 4, 4), np.float32) if self.predicts_masks else None
            result = Result(
                boxes=np.array([[0, 0, width / 2, height], [red / 256, 0, width, height]], np.float32),
                scores=np.array([0.9, 0.4], np.float32),
                labels=np.array([0, 1]),
                classes=CLASSES,
                category_ids=(3, 5),
                size=(height, width),
                pixels=frame.pixels,
                mask_probabilities=masks,
            )
            yield result.filter(score=score)


if __name__ == "__main__":
    from detect.serve.server import bind, serve
    from detect.serve.service import Limits, Service

    serve(Service(FakeDetector(float(sys.argv[1])), {}, Limits()), bind("127.0.0.1", 0))
