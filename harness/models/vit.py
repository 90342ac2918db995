"""A Vision Transformer for small images: torchvision's, at the size of DeiT-tiny (width 192, 12 blocks, 3 heads).

Queries, keys and values come from one projection, `in_proj_weight`, which is prunable. torchvision starts the
classifier at zero, which gives sign transfer nothing to put signs on; here it starts as DeiT does (Touvron et al.
2021).
"""

from __future__ import annotations

from torch import nn

_DEPTH = 12
_HEAD_WIDTH = 64
_PATCHES = (16, 8, 4, 2, 1)


def vit_tiny(*, num_classes: int, channels: int, image_size: int, width: int = 192) -> nn.Module:
    """Build ViT-tiny; its patch is the largest power of 2 that cuts the image into 7×7 or more: 4 at 32, 8 at 64.

    There is one head for each 64 channels, at least one; a width that its heads do not divide is a ValueError, as is
    an image that no patch fits.
    """
    from torchvision.models import VisionTransformer  # a second to import

    fitting = [patch for patch in _PATCHES if image_size % patch == 0 and image_size // patch >= 7]
    if not fitting:
        raise ValueError(f"vit_tiny needs images of at least 7 pixels a side, got {image_size}")
    num_heads = max(1, width // _HEAD_WIDTH)
    if width % num_heads:
        raise ValueError(f"width {width} of vit_tiny cannot be shared out over its {num_heads} heads")
    model = VisionTransformer(
        image_size=image_size,
        patch_size=fitting[0],
        num_layers=_DEPTH,
        num_heads=num_heads,
        hidden_dim=width,
        mlp_dim=4 * width,
        num_classes=num_classes,
    )
    if channels != 3:
        model.conv_proj = nn.Conv2d(channels, width, fitting[0], stride=fitting[0])
        nn.init.trunc_normal_(model.conv_proj.weight, std=(channels * fitting[0] ** 2) ** -0.5)  # torchvision's own
        nn.init.zeros_(model.conv_proj.bias)
    nn.init.trunc_normal_(model.heads.head.weight, std=0.02)
    return model
