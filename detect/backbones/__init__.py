"""Bodies (networks cut into stages with named feature maps) and necks (pyramids over these maps)."""

from typing import Annotated, get_args

from pydantic import Field

from detect.backbones.alexnet import AlexNetOptions
from detect.backbones.backbone import Backbone, BackboneOptions, BoxHead, CropNetwork, FeatureInfo, StagedBackbone
from detect.backbones.csp_darknet import CSPDarknetOptions
from detect.backbones.googlenet import GoogLeNetOptions
from detect.backbones.lenet import LeNetOptions
from detect.backbones.necks import FPN, FPNOptions, Neck
from detect.backbones.pafpn import PAFPNOptions
from detect.backbones.pixels import Pixels
from detect.backbones.resnet import ResNet, ResNetOptions
from detect.backbones.timm import TimmOptions
from detect.backbones.vgg import VGGOptions
from detect.backbones.vgg_m import VGGMOptions

AnyBackbone = Annotated[
    ResNetOptions
    | VGGOptions
    | VGGMOptions
    | AlexNetOptions
    | GoogLeNetOptions
    | LeNetOptions
    | CSPDarknetOptions
    | TimmOptions,
    Field(discriminator="name"),
]
"""Options of every backbone; add a new one here."""
AnyNeck = FPNOptions
"""Options of every neck with levels of one width, as the R-CNNs need; a second one makes this a union discriminated by
`name`, like `AnyBackbone`."""
BACKBONE_NAMES = tuple(options.name for options in get_args(get_args(AnyBackbone)[0]))

__all__ = [
    "BACKBONE_NAMES",
    "FPN",
    "AlexNetOptions",
    "AnyBackbone",
    "AnyNeck",
    "Backbone",
    "BackboneOptions",
    "BoxHead",
    "CSPDarknetOptions",
    "CropNetwork",
    "FPNOptions",
    "FeatureInfo",
    "GoogLeNetOptions",
    "LeNetOptions",
    "Neck",
    "PAFPNOptions",
    "Pixels",
    "ResNet",
    "ResNetOptions",
    "StagedBackbone",
    "TimmOptions",
    "VGGMOptions",
    "VGGOptions",
]
