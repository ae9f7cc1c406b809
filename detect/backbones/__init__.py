"""Networks, each cut into a backbone and a trunk."""

from detect.backbones.backbone import CNN, Backbone, FeatureInfo, Trunk
from detect.backbones.resnet import ResNet
from detect.backbones.vgg import VGG

__all__ = ["CNN", "VGG", "Backbone", "FeatureInfo", "ResNet", "Trunk"]
