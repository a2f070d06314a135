"""torchvision's ResNet-18 (He et al. 2016) with its stem made for small images."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from influx.models.base import Model, Shape
from influx.vision import torchvision


@dataclass(frozen=True)
class ResNet18(Model):
    """Random weights. The 7x7 stride-2 stem becomes 3x3 stride 1 and the first pooling goes (He et al. 2016, section 4.2, CIFAR)."""

    def module(self, shape: Shape) -> nn.Module:
        channels = shape.require_images("resnet18", smallest=8)
        resnet = torchvision().models.resnet
        net = resnet.ResNet(resnet.BasicBlock, [2, 2, 2, 2], num_classes=shape.n_outputs)
        net.conv1 = nn.Conv2d(channels, 64, 3, stride=1, padding=1, bias=False)
        net.maxpool = nn.Identity()
        return net
