"""Import of weights of other projects: torchvision and detectron2."""
