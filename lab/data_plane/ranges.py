"""The Range header, single ranges only. Source: RFC 9110, section 14."""

from __future__ import annotations

import re
from dataclasses import dataclass

_SINGLE = re.compile(r"bytes=\s*(\d{0,18})\s*-\s*(\d{0,18})\s*")


class RangeNotSatisfiableError(Exception):
    """The range begins behind the end of the file: 416."""


@dataclass(frozen=True, slots=True)
class ByteRange:
    """[start, stop) of a file of `size` bytes."""

    start: int
    stop: int
    size: int

    @property
    def length(self) -> int:
        return self.stop - self.start

    @property
    def content_range(self) -> str:
        return f"bytes {self.start}-{self.stop - 1}/{self.size}"


def whole_file(size: int) -> ByteRange:
    return ByteRange(0, size, size)


def parse_range(header: str | None, size: int) -> ByteRange | None:
    """None: answer with the whole file (no header, several ranges, or one that is no range).

    Raises:
        RangeNotSatisfiableError: a valid range that holds no byte of the file.
    """
    match = _SINGLE.fullmatch(header or "")
    if match is None or match[1] == match[2] == "":
        return None
    if match[1] == "":  # the last n bytes
        count = min(int(match[2]), size)
        start, stop = size - count, size
    else:
        start = int(match[1])
        stop = min(int(match[2]) + 1, size) if match[2] else size
        if match[2] and int(match[2]) < start:
            return None
    if start >= size or start >= stop:
        raise RangeNotSatisfiableError(f"{header} of {size} bytes")
    return ByteRange(start, stop, size)
