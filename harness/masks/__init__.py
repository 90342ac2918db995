"""Masks and signed masks: what they are, what two have in common, how one is used."""

from harness.masks.mask import Mask, SignedMask, check_fits, read_header

__all__ = ["Mask", "SignedMask", "check_fits", "read_header"]
