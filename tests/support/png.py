"""Just enough of PNG to make pictures and tell blank ones (RFC 2083, sections 3 and 9)."""

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


def make_png(
    rows: list[bytes], *, colour: int = 2, palette: bytes = b"", filter_kind: int = 0
) -> bytes:
    """A picture of 8-bit samples; every row is filtered in the same way."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    above = bytes(len(rows[0]))
    lines = b""
    for row in rows:
        lines += bytes((filter_kind,)) + _filter(filter_kind, row, above, channels)
        above = row
    header = struct.pack(">IIBBBBB", len(rows[0]) // channels, len(rows), 8, colour, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    if palette:
        chunks.insert(1, (b"PLTE", palette))
    return _SIGNATURE + b"".join(chunk(kind, body) for kind, body in chunks)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _filter(kind: int, row: bytes, above: bytes, channels: int) -> bytes:
    result = bytearray()
    for i, value in enumerate(row):
        left = row[i - channels] if i >= channels else 0
        corner = above[i - channels] if i >= channels else 0
        predicted = (0, left, above[i], (left + above[i]) // 2, _paeth(left, above[i], corner))
        result.append((value - predicted[kind]) & 0xFF)
    return bytes(result)
