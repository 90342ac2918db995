"""Masks and signed masks, their comparison, and their use."""

from harness.masks.mask import Mask, SignedMask, same_contents

__all__ = ["Mask", "SignedMask", "same_contents"]
