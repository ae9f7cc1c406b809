"""Print the peak bytes of NMS of 12,000 boxes, and of matching in 16 images with 1,024 ground truths each."""

from collections.abc import Callable

import torch

from detect.models.matcher import Matcher, match
from detect.ops.nms import nms
from detect.structures import Targets


def peak(run: Callable[[], object]) -> int:
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return torch.cuda.max_memory_allocated() - before


if __name__ == "__main__":
    boxes, valid = torch.zeros(1, 12_000, 4, device="cuda"), torch.ones(1, 12_000, dtype=torch.bool, device="cuda")
    print(peak(lambda: nms(boxes, valid, 0.7)))
    anchors = torch.zeros(1, 217_413, 4, device="cuda").expand(16, -1, -1)
    ground_truths, flags = (
        torch.zeros(16, 1024, 4, device="cuda"),
        torch.ones(16, 1024, dtype=torch.bool, device="cuda"),
    )
    targets = Targets(ground_truths, flags.long(), flags, ~flags)
    print(peak(lambda: match(anchors, targets, Matcher(0.7, 0.3, best_is_positive=True))))
