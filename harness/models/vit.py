"""Vision Transformer for small images: torchvision's, at the size of DeiT-tiny.

DeiT-tiny has width 192, 12 blocks and 3 heads. Queries, keys and values come from one projection, `in_proj_weight`,
which is prunable. torchvision initialises the classifier to zero, which would leave no magnitudes for sign transfer. It
is initialised here as in DeiT (Touvron et al. 2021).
"""

from __future__ import annotations

from torch import nn

from harness.models.sources import library_version

_DEPTH = 12
_HEAD_WIDTH = 64
_PATCHES = (16, 8, 4, 2, 1)


def vit_tiny(*, num_classes: int, channels: int, image_size: int, width: int = 192) -> nn.Module:
    """Build ViT-tiny.

    The patch size is the largest of 16, 8, 4, 2, 1 that divides the image into at least 7×7 patches. It is 4 at 28 and
    32 pixels, and 8 at 64. There is one head per 64 channels, and at least one.

    Raises:
        ValueError: No patch size fits the image, or the number of heads does not divide the width.
    """
    library_version("torchvision", "vit_tiny")
    from torchvision.models import VisionTransformer  # imported here because it takes a second

    # Choose patch size and number of heads.
    fitting = [patch for patch in _PATCHES if image_size % patch == 0 and image_size // patch >= 7]
    if not fitting:
        raise ValueError(f"vit_tiny needs images of at least 7×7 pixels, got {image_size}")
    num_heads = max(1, width // _HEAD_WIDTH)
    if width % num_heads:
        raise ValueError(f"width {width} of vit_tiny is not divisible by its {num_heads} heads")
    # Build the network, then replace the patch projection and redraw the classifier.
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
        nn.init.trunc_normal_(model.conv_proj.weight, std=(channels * fitting[0] ** 2) ** -0.5)  # as in torchvision
        nn.init.zeros_(model.conv_proj.bias)
    nn.init.trunc_normal_(model.heads.head.weight, std=0.02)
    return model
