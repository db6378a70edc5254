"""Pictures of a screen as pixels: just enough of PNG for what hypervisors make. Pure.

8 bits per channel, grey, RGB, palette, with or without alpha (dropped), not interlaced. A picture
is made by QEMU or a hypervisor, but shows what a guest likes and has the size that it chose, so
the number of pixels is bounded before anything is unpacked, and unpacking stops there.
Source: PNG (W3C, second edition), sections 5, 9 and 11.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from appliance.sandbox.errors import PictureError

PIXELS_MAX = 16 << 20
_FILE_BYTES_MAX = 64 << 20
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
_PALETTE = 3

Pixels = NDArray[np.uint8]
"""Of shape (height, width, 3): red, green, blue."""


def read_png(raw: bytes) -> Pixels:
    """Raises PictureError: not a whole picture, or of a kind that is not read."""
    if not raw.startswith(_SIGNATURE) or len(raw) > _FILE_BYTES_MAX:
        raise PictureError("not a PNG picture")
    header, palette, data = b"", b"", []
    for kind, body in _chunks(raw):
        if kind == b"IHDR":
            header = body
        elif kind == b"PLTE":
            palette = body
        elif kind == b"IDAT":
            data.append(body)
    if len(header) != 13:
        raise PictureError("a picture without a header")
    width, height, depth, colour, *ways = struct.unpack(">IIBBBBB", header)
    if depth != 8 or colour not in _CHANNELS or ways != [0, 0, 0]:
        raise PictureError(f"a picture of {depth} bits, colour type {colour}, {ways}")
    if not 0 < width * height <= PIXELS_MAX:
        raise PictureError(f"a picture of {width} x {height}")
    channels = _CHANNELS[colour]
    lines = _unpack(b"".join(data), height * (1 + width * channels)).reshape(height, -1)
    return _to_rgb(_unfilter(lines, channels), colour, palette)


def _chunks(raw: bytes) -> Iterator[tuple[bytes, bytes]]:
    place = len(_SIGNATURE)
    kind = b""
    while kind != b"IEND":
        if place + 12 > len(raw):
            raise PictureError("a picture that is cut short")
        length, kind = struct.unpack_from(">I4s", raw, place)
        body = raw[place + 8 : place + 8 + length]
        check = raw[place + 8 + length : place + 12 + length]
        if zlib.crc32(kind + body).to_bytes(4, "big") != check:
            raise PictureError("a picture that is damaged")
        yield kind, body
        place += length + 12


def _unpack(packed: bytes, wanted_bytes: int) -> Pixels:
    unpacker = zlib.decompressobj()
    try:
        data = unpacker.decompress(packed, wanted_bytes + 1)
    except zlib.error as error:
        raise PictureError("a picture that is damaged") from error
    if len(data) != wanted_bytes:
        raise PictureError("a picture of another size than it says")
    return np.frombuffer(data, np.uint8)


def _unfilter(lines: Pixels, channels: int) -> Pixels:
    """Undo the filter of each line; return (height, width, channels)."""
    height, width = lines.shape[0], (lines.shape[1] - 1) // channels
    result = np.zeros((height, width, channels), np.uint8)
    above = np.zeros((width, channels), np.uint8)
    for row in range(height):
        line = lines[row, 1:].reshape(width, channels)
        match int(lines[row, 0]):
            case 0:
                above = line
            case 1:
                above = np.add.accumulate(line, axis=0, dtype=np.uint8)
            case 2:
                above = line + above
            case 3 | 4 as kind:
                above = _sequential(kind, line, above, channels)
            case _:
                raise PictureError("a picture with an unknown filter")
        result[row] = above
    return result


def _sequential(kind: int, line: Pixels, above: Pixels, channels: int) -> Pixels:
    """Average and Paeth: each byte needs the one to its left."""
    source, up = line.tobytes(), above.tobytes()
    made = bytearray(len(source))
    for place, value in enumerate(source):
        left = made[place - channels] if place >= channels else 0
        if kind == 3:
            predicted = (left + up[place]) >> 1
        else:
            corner = up[place - channels] if place >= channels else 0
            predicted = _paeth(left, up[place], corner)
        made[place] = (value + predicted) & 0xFF
    return np.frombuffer(bytes(made), np.uint8).reshape(-1, channels)


def _paeth(left: int, up: int, corner: int) -> int:
    to_left, to_up = abs(up - corner), abs(left - corner)
    to_corner = abs(left + up - 2 * corner)
    if to_left <= to_up and to_left <= to_corner:
        return left
    return up if to_up <= to_corner else corner


def _to_rgb(pixels: Pixels, colour: int, palette: bytes) -> Pixels:
    if colour == _PALETTE:
        table = np.zeros((256, 3), np.uint8)
        if len(palette) % 3 or not 0 < len(palette) <= 768:
            raise PictureError("a picture with a wrong palette")
        table[: len(palette) // 3] = np.frombuffer(palette, np.uint8).reshape(-1, 3)
        return table[pixels[:, :, 0]]
    if pixels.shape[2] <= 2:
        return np.repeat(pixels[:, :, :1], 3, axis=2)
    return pixels[:, :, :3]
