"""A detector with its pre-processing as one module: from photographs to boxes in their pixels.

`import detect.export.exportable` is all that a program saved by torch.export needs to run.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor, nn

from detect.data.canvases import SIZE_DIVISIBILITY, enclosing_canvas
from detect.data.transforms import Resize, resize
from detect.models import Detector
from detect.structures import Images, to_file_pixels


class Exportable(nn.Module):
    """What is exported: photographs of one size in, padded detections out."""

    def __init__(self, model: Detector, resizing: Resize) -> None:
        super().__init__()
        self.model, self.resizing = model, resizing

    def forward(
        self, images: UInt8[Tensor, "B H W 3"]
    ) -> tuple[Float32[Tensor, "B D 4"], Float32[Tensor, "B D"], Int64[Tensor, "B D"], Int64[Tensor, " B"]]:
        """Boxes, in pixels of the photographs and best first, scores, labels, and how many of each are real."""
        pixels, sizes, scales = letterbox(images, self.resizing.short_side, self.resizing.long_side)
        found = to_file_pixels(self.model.detect(Images(pixels, sizes)), scales)
        boxes = found.boxes.where(found.valid.unsqueeze(-1), 0.0)
        return boxes, found.scores, found.labels.where(found.valid, 0), found.valid.sum(dim=1)


@torch.library.custom_op("detect::letterbox", mutates_args=(), device_types="cpu")
def letterbox(images: Tensor, short_side: int, long_side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Resized photographs in the upper left corners of the smallest canvases that are multiples of 32, else black.

    Pixels are uint8 [B, 3, h, w]; then come the sizes there, int64 [B, 2], and the `scales` of a `Batch`, [B, 2].
    """
    height, width = Resize(short_side, long_side).size(*images.shape[1:3])
    canvas = enclosing_canvas([(height, width)])
    pixels = np.zeros((len(images), *canvas, 3), np.uint8)
    for place, image in enumerate(images.contiguous().numpy()):
        pixels[place, :height, :width] = resize(image, (height, width))
    sizes, scales = [height, width], [width / images.shape[2], height / images.shape[1]]
    return (
        torch.from_numpy(pixels).permute(0, 3, 1, 2),
        torch.tensor([sizes] * len(images)),
        torch.tensor([scales] * len(images), dtype=torch.float32),
    )


@letterbox.register_fake
def _(images: Tensor, short_side: int, long_side: int) -> tuple[Tensor, Tensor, Tensor]:
    context = torch.library.get_ctx()
    height, width = (context.new_dynamic_size(min=1) * SIZE_DIVISIBILITY for _ in range(2))
    count = images.shape[0]  # len() would make a constant of it
    pixels = images.new_empty(count, height, width, 3).permute(0, 3, 1, 2)
    return pixels, images.new_empty(count, 2, dtype=torch.int64), images.new_empty(count, 2, dtype=torch.float32)
