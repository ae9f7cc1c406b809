"""Fast R-CNN: proposals from elsewhere share the features of the whole image (Girshick 2015)."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from detect.backbones import CNN, ResNet
from detect.models.box_head import HeadOptions, box_trunk
from detect.models.detector import BoxOptions, Detector
from detect.models.postprocess import PostprocessOptions
from detect.models.region_pooling import PoolingOptions, RegionPooling
from detect.structures import Images


class FastRCNN(Detector):
    """Any backbone, and the backbone's own trunk (or two layers of 1024) on each proposal that comes with the batch.

    Args:
        num_classes: C, without background.
        backbone: `VGG`, `AlexNet`, `VGGM` or `ResNet` (FPN or C4).
        scales: in prediction the image is seen at so many times its size as well, and each proposal pooled where it is
            nearest to 224² pixels (§2.2); training sees one size a step, as `data.short_side` draws it. Not with FPN.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: CNN | None = None,
        pooling: PoolingOptions | None = None,
        head: HeadOptions | None = None,
        boxes: BoxOptions | None = None,
        detections: PostprocessOptions | None = None,
        scales: Sequence[float] = (),
    ) -> None:
        self.scales = tuple(scales)
        body, trunk = (backbone or ResNet()).build()
        trunk = trunk or box_trunk(body, head or HeadOptions())
        super().__init__(
            num_classes=num_classes,
            backbone=body,
            rpn=None,
            pooling=RegionPooling(body.features, trunk.pooled, pooling, scales),
            trunk=trunk,
            boxes=boxes,
            detections=detections,
        )

    def features(self, images: Images) -> list[Float[Tensor, "B c _ _"]]:
        """The map of the images, and in prediction one for each of `scales`."""
        sizes = [images] if self.training else [images, *(_resized(images, scale) for scale in self.scales)]
        return [level for one in sizes for level in Detector.features(self, one)]


def _resized(images: Images, scale: float) -> Images:
    """The images at so many times their size, on a canvas of multiples of 32."""
    pixels = F.interpolate(images.pixels.float(), scale_factor=scale, mode="bilinear", antialias=scale < 1)
    height, width = pixels.shape[2:]
    pixels = F.pad(pixels, (0, -width % 32, 0, -height % 32))
    return Images(pixels, (images.sizes * scale).round().to(images.sizes.dtype))
