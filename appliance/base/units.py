"""Sizes: the constants that the code may use, and sizes as people write and read them."""

from __future__ import annotations

import re
from datetime import timedelta

from appliance.base.errors import UsageError

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
TIB = 1 << 40
SECTOR_BYTES = 512

_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?\s*$", re.IGNORECASE)
_FACTORS = {"": 1, "K": KIB, "M": MIB, "G": GIB, "T": TIB}
_DURATION = re.compile(r"([0-9]{1,9})(s|m|min|h|d)?", re.ASCII)
_SECONDS = {None: 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


def parse_duration(text: str) -> timedelta:
    """Understand `90`, `90s`, `5min`, `4h`, `1d`; not zero. Raises UsageError."""
    match = _DURATION.fullmatch(text.strip())
    if match is None or int(match[1]) == 0:
        raise UsageError(f"not a duration: {text!r} (write 90s, 5min, 4h, 1d)")
    return timedelta(seconds=int(match[1]) * _SECONDS[match[2]])


def parse_size(text: str) -> int:
    """Return bytes for `4096`, `64K`, `1.5GiB`; units are binary. Raises UsageError."""
    match = _SIZE.match(text)
    if match is None:
        raise UsageError(f"not a size: {text!r} (write 4096, 64K, 1.5GiB)")
    return int(float(match[1]) * _FACTORS[match[2].upper()])


def format_size(size_bytes: float) -> str:
    """Return `1.5 GiB`: binary units, three significant digits."""
    value, unit = float(size_bytes), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if abs(value) < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.3g} {unit}"


def format_rate(bytes_per_s: float) -> str:
    return f"{format_size(bytes_per_s)}/s"


def format_duration(seconds: float) -> str:
    """Return `850 ms`, `12.3 s`, `4 min 05 s` or `3 h 20 min`."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest_s = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest_s:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
