"""Read the table of classes in ImageNet's meta.mat, a file of MATLAB's format, version 5.

scipy's reader is not used, because a damaged file can crash the process inside it. This reader checks every length. It
skips all that the table does not need.

A file is a header of 128 bytes, then elements. An element is a tag (type and number of bytes), then its data, padded to
8 bytes. Data of up to 4 bytes may be inside the tag. See "MAT-File Format" of MATLAB's documentation.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

import numpy as np

_HEADER_BYTES = 128
_MATRIX, _COMPRESSED = 14, 15
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_TEXTS = {1: "latin-1", 2: "latin-1", 4: "utf-16", 16: "utf-8", 17: "utf-16"}
_STRUCT = 2  # class of a matrix
_MOST_BYTES = 2**28


def read_synsets(content: bytes) -> dict[int, str]:
    """Return the wnid of every ILSVRC2012_ID.

    Args:
        content: The file.

    Raises:
        ValueError: The file is not in this format, is damaged, or has no such table.
    """
    # Find the byte order.
    order = {b"IM": "<", b"MI": ">"}.get(content[126:_HEADER_BYTES])
    if order is None:
        raise ValueError("it is not a file of MATLAB, version 5")
    # Find the table among the variables.
    for kind, data in _elements(content[_HEADER_BYTES:], order, padded=False):
        variables = [(kind, data)]
        if kind == _COMPRESSED:
            variables = list(_elements(_decompressed(data), order))
        for own_kind, matrix in variables:
            if own_kind == _MATRIX and (found := _synsets(matrix, order)):
                return found
    raise ValueError("it has no table named synsets with ILSVRC2012_ID and WNID")


def _decompressed(data: bytes) -> bytes:
    unpacker = zlib.decompressobj()
    try:
        content = unpacker.decompress(data, _MOST_BYTES)
    except zlib.error as error:
        raise ValueError(str(error)) from None
    if not unpacker.eof:
        raise ValueError(f"a variable is truncated, or has more than {_MOST_BYTES:,} bytes")
    return content


def _elements(content: bytes, order: str, padded: bool = True) -> Iterator[tuple[int, bytes]]:
    """Yield (type, data) of all elements.

    Args:
        content: The elements.
        order: Byte order, "<" or ">".
        padded: Whether compressed elements are padded, too.
    """
    position = 0
    while position + 8 <= len(content):
        kind, size = struct.unpack_from(f"{order}II", content, position)
        if kind >> 16:  # the data are inside the tag
            kind, size = kind & 0xFFFF, kind >> 16
            start, following = position + 4, position + 8
            if size > 4:
                raise ValueError(f"an element at byte {position} claims {size} bytes inside its tag")
        else:
            start = position + 8
            end = start + size
            following = end if kind == _COMPRESSED and not padded else end + -end % 8
        if start + size > len(content):
            raise ValueError(f"it is truncated: an element at byte {position} claims {size} bytes")
        yield kind, content[start : start + size]
        position = following


def _synsets(matrix: bytes, order: str) -> dict[int, str]:
    """Return the table if this variable is it, or {}."""
    # Read flags, dimensions and name.
    parts = _elements(matrix, order)
    flags, dimensions, name = (next(parts, (0, b""))[1] for _ in range(3))
    is_struct = len(flags) >= 4 and struct.unpack_from(f"{order}I", flags)[0] & 0xFF == _STRUCT
    if not is_struct or name != b"synsets":
        return {}
    # Read the names of the fields.
    length = next(parts, (0, b""))[1]
    width = struct.unpack_from(f"{order}i", length)[0] if len(length) >= 4 else 0
    if width <= 0:
        raise ValueError("the table synsets has no fields")
    names = next(parts, (0, b""))[1]
    fields = [names[start : start + width].split(b"\0")[0] for start in range(0, len(names), width)]
    if not {b"ILSVRC2012_ID", b"WNID"} <= set(fields):
        raise ValueError("the table synsets has no fields ILSVRC2012_ID and WNID")
    # Read the rows: one matrix per field.
    values = [data for kind, data in parts if kind == _MATRIX]
    if len(values) != int(np.prod(np.frombuffer(dimensions, f"{order}i4"), dtype=np.int64)) * len(fields):
        raise ValueError("the table synsets is incomplete")
    numbers, wnids = (values[fields.index(field) :: len(fields)] for field in (b"ILSVRC2012_ID", b"WNID"))
    return {_number(number, order): _text(wnid, order) for number, wnid in zip(numbers, wnids, strict=True)}


def _number(matrix: bytes, order: str) -> int:
    kind, data = _content(matrix, order)
    values = np.frombuffer(data, f"{order}{_NUMBERS[kind]}") if kind in _NUMBERS else np.array([])
    if values.size != 1 or not np.isfinite(values[0]) or values[0] != int(values[0]):
        raise ValueError("an ILSVRC2012_ID is not one integer")
    return int(values[0])


def _text(matrix: bytes, order: str) -> str:
    kind, data = _content(matrix, order)
    encoding = _TEXTS.get(kind)
    if encoding is None:
        raise ValueError("a WNID is no text")
    return data.decode(encoding + ({"<": "-le", ">": "-be"}[order] if encoding == "utf-16" else ""))


def _content(matrix: bytes, order: str) -> tuple[int, bytes]:
    """Return type and data of a matrix: the element after flags, dimensions and name."""
    parts = list(_elements(matrix, order))
    if len(parts) < 4:
        raise ValueError("a field of the table synsets is empty")
    return parts[3]
