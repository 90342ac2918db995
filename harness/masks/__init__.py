"""Masks and signed masks: what they are, what two have in common, how one is used."""

from harness.masks.mask import Mask, SignedMask

__all__ = ["Mask", "SignedMask"]
