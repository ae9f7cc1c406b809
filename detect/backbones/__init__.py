"""Networks, each cut into a backbone and a trunk."""

from detect.backbones.alexnet import AlexNet
from detect.backbones.backbone import CNN, Backbone, FeatureInfo, Trunk, WholeCNN
from detect.backbones.googlenet import GoogLeNet
from detect.backbones.lenet import LeNet
from detect.backbones.pixels import Pixels
from detect.backbones.resnet import ResNet
from detect.backbones.timm import Timm
from detect.backbones.vgg import VGG
from detect.backbones.vgg_m import VGGM

__all__ = [
    "CNN",
    "VGG",
    "VGGM",
    "AlexNet",
    "Backbone",
    "FeatureInfo",
    "GoogLeNet",
    "LeNet",
    "Pixels",
    "ResNet",
    "Timm",
    "Trunk",
    "WholeCNN",
]
