"""What a VM's screen shows, as a PNG: the host's thumbnail, in the size of the screen.

The host answers with 16-bit pixels; the PNG has 8 bits per channel, each scaled so that black and
white are what they were.
Thread model: functions; `take_screenshot` blocks. Source: script `vm_screen`; PNG (W3C, second
edition), sections 5, 9 and 11.
"""

from __future__ import annotations

import base64
import binascii
import struct
import zlib

import numpy as np
from pydantic import Field

from hyperv.errors import ProtocolError
from hyperv.host_session import HostSession
from hyperv.patience import Patience
from hyperv.script_types import Answer

_WIDTH_MOST, _HEIGHT_MOST = 1920, 1200
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_RGB_8_BITS = (8, 2, 0, 0, 0)  # depth, colour type, and the only ways there are


class _Screen(Answer):
    width: int = Field(gt=0, le=_WIDTH_MOST)
    height: int = Field(gt=0, le=_HEIGHT_MOST)
    pixels: str


def take_screenshot(host: HostSession, vm_id: str, patience: Patience) -> bytes:
    """Raises: ScriptError: the VM is off, or the host has no picture; HypervError."""
    answer = host.call("vm_screen", {"vm_id": vm_id}, _Screen, patience=patience)
    try:
        pixels = base64.b64decode(answer.pixels, validate=True)
    except binascii.Error as error:
        raise ProtocolError(f"vm_screen: the picture cannot be decoded ({error})") from None
    if len(pixels) != 2 * answer.width * answer.height:
        raise ProtocolError(
            f"vm_screen: {len(pixels)} bytes for {answer.width} x {answer.height} pixels"
        )
    return png_of_rgb565(pixels, answer.width)


def png_of_rgb565(pixels: bytes, width: int) -> bytes:
    """`pixels`: whole rows of little-endian numbers of 16 bits: 5 red, 6 green, 5 blue."""
    packed = np.frombuffer(pixels, "<u2").reshape(-1, width).astype(np.uint32)
    height = packed.shape[0]
    rows = np.zeros((height, 1 + 3 * width), np.uint8)  # each begins with its filter: none
    rows[:, 1::3] = (packed >> 11) * 255 // 31
    rows[:, 2::3] = (packed >> 5 & 63) * 255 // 63
    rows[:, 3::3] = (packed & 31) * 255 // 31
    header = struct.pack(">IIBBBBB", width, height, *_RGB_8_BITS)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes())), (b"IEND", b""))
    return _SIGNATURE + b"".join(_chunk(kind, body) for kind, body in chunks)


def _chunk(kind: bytes, body: bytes) -> bytes:
    check = zlib.crc32(kind + body)
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", check)
