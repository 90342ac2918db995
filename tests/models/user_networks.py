"""Files that users might write to define a network."""

from __future__ import annotations

from pathlib import Path

SMALL = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes, channels, width):
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.head = nn.Linear(width, num_classes)

    def forward(self, images):
        return self.head(torch.relu(self.norm(self.conv(images))).mean((2, 3)))

def build(num_classes, channels, image_size, width=8):
    return Net(num_classes, channels, width)
"""

HUGGING_FACE = """
from torch import nn
from transformers import ViTConfig, ViTForImageClassification

class Logits(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return self.model(images).logits

def raw(num_classes, channels, image_size):
    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, patch_size=8)
    config = ViTConfig(**sizes, image_size=image_size, num_channels=channels, num_labels=num_classes)
    return ViTForImageClassification(config)

def build(num_classes, channels, image_size):
    return Logits(raw(num_classes, channels, image_size))
"""


def write(path: Path, text: str = SMALL) -> str:
    """Write a file, and return the name of the network that its function `build` makes."""
    path.write_text(text, encoding="utf-8")
    return f"{path}:build"
