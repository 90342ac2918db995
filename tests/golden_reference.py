"""Compute the project's random streams in plain Python and NumPy, without the harness.

docs/methods.md says which stream is drawn where. The functions here repeat the rule and share no code with the product.
"""

from __future__ import annotations

import hashlib

import numpy as np


def stream_key(seed: int, *purpose: str | int) -> int:
    """Return the first eight bytes of the SHA-256 of seed and purpose, as a little-endian integer."""
    words = [f"i{seed}", *(("s" if isinstance(word, str) else "i") + str(word) for word in purpose)]
    return int.from_bytes(hashlib.sha256("\x1f".join(words).encode()).digest()[:8], "little")


def stream(seed: int, *purpose: str | int) -> np.random.Generator:
    """Return the generator of a stream: Philox, keyed by `stream_key`."""
    return np.random.Generator(np.random.Philox(key=stream_key(seed, *purpose)))


def kept_at_random(seed: int, name: str, size: int, count: int) -> list[int]:
    """Return the sorted positions that the control `random_mask` keeps in a tensor."""
    return sorted(stream(seed, "random_mask", name).permutation(size)[:count].tolist())


def kept_by_rank(values: dict[str, list[float]], count: int) -> dict[str, list[bool]]:
    """Keep the `count` largest values of all tensors. Ties go to the earlier name, then to the earlier position."""
    places = [(-value, name, i) for name, row in values.items() for i, value in enumerate(row)]
    chosen = {place[1:] for place in sorted(places)[:count]}
    return {name: [(name, i) in chosen for i in range(len(row))] for name, row in values.items()}
