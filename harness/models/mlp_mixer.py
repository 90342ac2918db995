"""MLP-Mixer (Tolstikhin et al. 2021), with LayerNorm and without BatchNorm.

Parameter names match timm's `MlpMixer`. Layers use torch's default initialisation, as in common PyTorch ports. The
original initialises the classifier to zero, which would leave no magnitudes for sign transfer.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

_PATCH = 16


class Mlp(nn.Module):
    """Linear, GELU, Linear over the last dimension."""

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(features, hidden)
        self.fc2 = nn.Linear(hidden, features)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class MixerBlock(nn.Module):
    """Token mixing, then channel mixing, each with a residual connection and LayerNorm.

    Input and output have shape (N, tokens, width).
    """

    def __init__(self, tokens: int, width: int, token_hidden: int, channel_hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.mlp_tokens = Mlp(tokens, token_hidden)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp_channels = Mlp(width, channel_hidden)

    def forward(self, x_NTC: Tensor) -> Tensor:
        x_NTC = x_NTC + self.mlp_tokens(self.norm1(x_NTC).transpose(1, 2)).transpose(1, 2)
        return x_NTC + self.mlp_channels(self.norm2(x_NTC))


class PatchEmbedding(nn.Module):
    """Map each patch to a token of `width` channels."""

    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, stride=patch)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.proj(x_NCHW).flatten(2).transpose(1, 2)


class MlpMixer(nn.Module):
    """MLP-Mixer for one image size, which its token-mixing layers fix."""

    def __init__(
        self,
        *,
        num_classes: int,
        channels: int,
        image_size: int,
        patch: int,
        width: int,
        depth: int,
        token_hidden: int,
        channel_hidden: int,
    ) -> None:
        super().__init__()
        if image_size % patch:
            raise ValueError(
                f"MLP-Mixer's image size must be a multiple of its patch size {patch}, got {image_size}; "
                "for small images use mlp_mixer_small"
            )
        # Build patch embedding, mixer blocks and classifier.
        tokens = (image_size // patch) ** 2
        self.stem = PatchEmbedding(channels, width, patch)
        self.blocks = nn.Sequential(*(MixerBlock(tokens, width, token_hidden, channel_hidden) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.stem(x_NCHW))).mean(1))


def mlp_mixer(*, num_classes: int, channels: int, image_size: int, width: int = 512) -> nn.Module:
    """Build the paper's MLP-Mixer (7.8 M parameters).

    Hidden sizes are those of the paper's scripts: 784 for token mixing, 256 for channel mixing.
    """
    return MlpMixer(
        num_classes=num_classes,
        channels=channels,
        image_size=image_size,
        patch=_PATCH,
        width=width,
        depth=12,
        token_hidden=784,
        channel_hidden=256,
    )


def mlp_mixer_wide(*, num_classes: int, channels: int, image_size: int, width: int = 512) -> nn.Module:
    """Build MLP-Mixer with the usual hidden sizes (27.3 M parameters).

    They are 256 for token mixing and 2048 for channel mixing.
    """
    return MlpMixer(
        num_classes=num_classes,
        channels=channels,
        image_size=image_size,
        patch=_PATCH,
        width=width,
        depth=12,
        token_hidden=256,
        channel_hidden=2048,
    )


def mlp_mixer_small(*, num_classes: int, channels: int, image_size: int, width: int = 128) -> nn.Module:
    """Build an MLP-Mixer for images of 8 to 64 pixels: 4 blocks.

    Hidden sizes are width / 2 for token mixing and 2 · width for channel mixing. The patch size is the largest of 4, 2,
    1 that divides the image into at least 4 × 4 patches. It is 2 at 8 pixels, and 4 at 28 and 32.

    Raises:
        ValueError: No patch size fits the image.
    """
    fitting = [patch for patch in (4, 2, 1) if image_size % patch == 0 and image_size // patch >= 4]
    if not fitting:
        raise ValueError(f"mlp_mixer_small needs images of at least 4×4 pixels, got {image_size}")
    return MlpMixer(
        num_classes=num_classes,
        channels=channels,
        image_size=image_size,
        patch=fitting[0],
        width=width,
        depth=4,
        token_hidden=max(1, width // 2),
        channel_hidden=2 * width,
    )
