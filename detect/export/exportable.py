"""Module of a detector with its preprocessing, from images to boxes in pixels of the images.

A program saved by torch.export needs only `import detect.export.exportable` to run.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from detect.data.canvases import SIZE_DIVISIBILITY, enclosing_canvas
from detect.data.transforms import Resize, resize
from detect.models import Detector
from detect.structures import Images, to_file_pixels


class Exportable(nn.Module):
    """Exported module, from images of one size to padded detections.

    Args:
        model: the detector.
        resizing: scale of the network's input.
    """

    def __init__(self, model: Detector, resizing: Resize) -> None:
        super().__init__()
        self.model, self.resizing = model, resizing

    def forward(self, images: UInt8[Tensor, "B H W 3"]) -> tuple[Tensor, ...]:
        """Return the detections, best first.

        Returns:
            Boxes in pixels of the images, float32 [B, D, 4]; scores, float32 [B, D]; labels, int64 [B, D]; the number
            of detections per image, int64 [B]; and, of a detector with masks, their probabilities, each in its box,
            float32 [B, D, m, m].
        """
        pixels, sizes, scales = letterbox(images, self.resizing.short_side, self.resizing.long_side)
        detections = to_file_pixels(self.model.detect(Images(pixels, sizes)), scales)
        valid = detections.valid
        boxes = detections.boxes.where(valid.unsqueeze(-1), 0.0)
        outputs = boxes, detections.scores, detections.labels.where(valid, 0), valid.sum(dim=1)
        if detections.masks is None:
            return outputs
        return *outputs, detections.masks.where(valid[..., None, None], 0.0)


@torch.library.custom_op("detect::letterbox", mutates_args=(), device_types="cpu")
def letterbox(images: Tensor, short_side: int, long_side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Resize images and pad them with black to the smallest canvas whose sides are multiples of 32.

    Args:
        images: uint8 [B, H, W, 3].
        short_side: pixels of the short side after resizing.
        long_side: maximum pixels of the long side after resizing.

    Returns:
        Pixels uint8 [B, 3, h, w]; sizes on the canvas, int64 [B, 2]; and `scales` as in a `Batch`, float32 [B, 2].
    """
    height, width = Resize(short_side, long_side).size(*images.shape[1:3])
    canvas = enclosing_canvas([(height, width)])
    pixels = np.zeros((len(images), *canvas, 3), np.uint8)
    for row, image in enumerate(images.contiguous().numpy()):
        pixels[row, :height, :width] = resize(image, (height, width))
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
    count = images.shape[0]  # len() would be a constant
    pixels = images.new_empty(count, height, width, 3).permute(0, 3, 1, 2)
    return pixels, images.new_empty(count, 2, dtype=torch.int64), images.new_empty(count, 2, dtype=torch.float32)
