"""Just enough of PNG to tell a picture from a blank one (RFC 2083, sections 3 and 9)."""

from __future__ import annotations

import struct
import zlib

_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def distinct_pixels(png: bytes) -> int:
    """Return how many colours an 8-bit RGB picture shows. Raises ValueError unless it is whole."""
    width, height, data = _parse(png)
    raw = zlib.decompress(data)
    stride = width * 3
    if len(raw) != height * (stride + 1):
        raise ValueError("picture data has the wrong length")
    colours: set[bytes] = set()
    above = bytes(stride)
    for row in range(height):
        start = row * (stride + 1)
        above = _unfilter(raw[start], raw[start + 1 : start + 1 + stride], above)
        colours.update(above[i : i + 3] for i in range(0, stride, 3))
    return len(colours)


def _parse(png: bytes) -> tuple[int, int, bytes]:
    if not png.startswith(_SIGNATURE):
        raise ValueError("not a PNG")
    width = height = 0
    data, position, kind = b"", len(_SIGNATURE), b""
    while kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", png, position)
        body = png[position + 8 : position + 8 + length]
        (crc,) = struct.unpack_from(">I", png, position + 8 + length)
        if zlib.crc32(kind + body) != crc:
            raise ValueError(f"chunk {kind!r} is damaged")
        if kind == b"IHDR":
            width, height, *form = struct.unpack(">IIBBBBB", body)
            if form != [8, 2, 0, 0, 0]:
                raise ValueError(f"not 8-bit RGB without interlacing: {form}")
        elif kind == b"IDAT":
            data += body
        position += length + 12
    return width, height, data


def _unfilter(kind: int, row: bytes, above: bytes) -> bytes:
    result = bytearray(row)
    for i, value in enumerate(row):
        left = result[i - 3] if i >= 3 else 0
        corner = above[i - 3] if i >= 3 else 0
        predicted = (0, left, above[i], (left + above[i]) // 2, _paeth(left, above[i], corner))
        result[i] = (value + predicted[kind]) & 0xFF
    return bytes(result)


def _paeth(left: int, above: int, corner: int) -> int:
    estimate = left + above - corner
    return min((left, above, corner), key=lambda value: abs(estimate - value))
