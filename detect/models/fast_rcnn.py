"""Fast R-CNN: given proposals are pooled from features of the whole image (Girshick 2015)."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, ClassVar, Literal

from jaxtyping import Float
from pydantic import PositiveFloat
from torch import Tensor
from torch.nn import functional as F

from detect.backbones import AnyBackbone, AnyNeck, FPNOptions, ResNetOptions
from detect.errors import UserError
from detect.models.box_head import BoxHeadOptions, BoxPredictor, build_features
from detect.models.detector import DetectorOptions
from detect.models.low_rank import Ranks
from detect.models.postprocess import PostprocessOptions
from detect.models.region_head import RegionHead, RegionHeadOptions
from detect.models.region_pooling import PoolingOptions, RegionPooling
from detect.models.two_stage import TwoStage
from detect.options import options, over
from detect.structures import Images

REGION_HEAD = RegionHeadOptions(batch_size_per_image=64, negative_iou_min=0.1, delta_weights=None, smooth_l1_beta=1.0)
POSTPROCESS = PostprocessOptions(nms_threshold=0.3)


@options
class FastRCNNOptions(DetectorOptions):
    """Options of Fast R-CNN; the defaults are the paper's (§2.3), except for backbone and neck.

    Args:
        backbone: body of the network.
        neck: feature pyramid; null runs on the backbone's last map, with the network's own layers as box head.
        pooling: region pooling.
        box_head: layers on a pooled region, if the network has no layers left for it.
        region_head: sampling, matching and regression.
        postprocess: selection of detections from the predictions.
        scales: factors of further image sizes in prediction; each proposal is pooled from the size at which it is
            closest to 224² pixels (§2.2). Each training step has one size, drawn from `data.short_side`. Cannot be
            combined with a neck.
        svd: ranks of the box head's fully connected layers, set by `detect compress`.
    """

    proposals: ClassVar = "given"

    name: Literal["fast_rcnn"] = "fast_rcnn"
    backbone: AnyBackbone = field(default_factory=ResNetOptions)
    neck: AnyNeck | None = field(default_factory=FPNOptions)
    pooling: PoolingOptions = field(default_factory=PoolingOptions)
    box_head: BoxHeadOptions = field(default_factory=BoxHeadOptions)
    region_head: Annotated[RegionHeadOptions, over(REGION_HEAD)] = REGION_HEAD
    postprocess: Annotated[PostprocessOptions, over(POSTPROCESS)] = POSTPROCESS
    scales: tuple[PositiveFloat, ...] = ()
    svd: Ranks = ()


class FastRCNN(TwoStage):
    """Fast R-CNN. Proposals come with the batch."""

    Options = FastRCNNOptions
    region_head: RegionHead

    def __init__(self, num_classes: int, options: FastRCNNOptions | None = None) -> None:
        options = options or FastRCNNOptions()
        if options.neck is not None and options.neck.first_level != 2:
            raise UserError("neck.first_level: levels above stride 32 need an RPN or a one-stage detector; choose 2")
        self.scales = options.scales
        backbone, neck, levels, box_head = build_features(options.backbone, options.neck, options.box_head, options.svd)
        region_head = RegionHead(
            num_classes,
            RegionPooling(levels, box_head.pooled, options.pooling, options.scales),
            box_head,
            BoxPredictor(box_head.channels, num_classes, options.region_head.class_agnostic),
            options.region_head,
        )
        super().__init__(num_classes, options, backbone, neck, None, region_head)

    def features(self, images: Images) -> list[Float[Tensor, "B _c _h _w"]]:
        """Return the feature map of the images, and in prediction one more for each of `scales`."""
        sizes = [images] if self.training else [images, *(_resize(images, scale) for scale in self.scales)]
        return [level for resized in sizes for level in super(FastRCNN, self).features(resized)]


def _resize(images: Images, scale: float) -> Images:
    """Scale the images and pad the canvas to multiples of 32."""
    pixels = F.interpolate(images.pixels.float(), scale_factor=scale, mode="bilinear", antialias=scale < 1)
    height, width = pixels.shape[2:]
    pixels = F.pad(pixels, (0, -width % 32, 0, -height % 32))
    return Images(pixels, (images.sizes * scale).round().to(images.sizes.dtype))
