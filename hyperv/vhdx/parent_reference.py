"""What a differencing disk says of the file it builds on.

The paths are those of the Windows host that made the file, and whoever wrote the file chose them:
they are for finding a file among those one has a right to, never to be opened as they stand.

Source: [MS-VHDX] 2.6.2.6 for VHDX; VHD has a name and "locators" in its dynamic header.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PureWindowsPath
from typing import Final
from uuid import UUID

from hyperv.vhdx.errors import CorruptDiskFileError, UnsupportedDiskFileError
from hyperv.vhdx.structures import (
    PARENT_LOCATOR_ENTRY,
    PARENT_LOCATOR_HEAD,
    VHDX_PARENT_LOCATOR,
)

_MOST_PAIRS: Final = 64
_LINKAGES: Final = ("parent_linkage", "parent_linkage2")


@dataclass(frozen=True, slots=True, kw_only=True)
class ParentReference:
    """`linkages`: the content ids that the parent may have, of which one must fit."""

    linkages: tuple[UUID, ...]
    relative_path: str = ""
    absolute_path: str = ""
    volume_path: str = ""

    @property
    def file_name(self) -> str:
        """The last part of the first path there is, empty without any."""
        paths = (self.relative_path, self.absolute_path, self.volume_path)
        return PureWindowsPath(next(filter(None, paths), "")).name

    def __str__(self) -> str:
        return self.relative_path or self.absolute_path or self.volume_path or "(no path)"


def parse_parent_locator(item: bytes) -> ParentReference:
    """Raises: CorruptDiskFileError, UnsupportedDiskFileError (a locator of another type)."""
    if len(item) < PARENT_LOCATOR_HEAD.size:
        raise CorruptDiskFileError("parent locator", f"{len(item)} bytes")
    kind, _, count = PARENT_LOCATOR_HEAD.unpack_from(item)
    if UUID(bytes_le=kind) != VHDX_PARENT_LOCATOR:
        raise UnsupportedDiskFileError(f"a parent locator of type {UUID(bytes_le=kind)}")
    end = PARENT_LOCATOR_HEAD.size + count * PARENT_LOCATOR_ENTRY.size
    if count > _MOST_PAIRS or end > len(item):
        raise CorruptDiskFileError("parent locator", f"{count} pairs")
    pairs: dict[str, str] = {}
    for number in range(count):
        at = PARENT_LOCATOR_HEAD.size + number * PARENT_LOCATOR_ENTRY.size
        key_at, value_at, key_bytes, value_bytes = PARENT_LOCATOR_ENTRY.unpack_from(item, at)
        key = _text(item, key_at, key_bytes)
        if key in pairs:
            raise CorruptDiskFileError("parent locator", f"{key!r} stands there twice")
        pairs[key] = _text(item, value_at, value_bytes)
    linkages = tuple(_linkage(pairs[key]) for key in _LINKAGES if key in pairs)
    if not linkages:
        raise CorruptDiskFileError("parent locator", "no parent_linkage")
    return ParentReference(
        linkages=linkages,
        relative_path=pairs.get("relative_path", ""),
        absolute_path=pairs.get("absolute_win32_path", ""),
        volume_path=pairs.get("volume_path", ""),
    )


def _text(item: bytes, offset: int, length: int) -> str:
    if not length or offset + length > len(item):
        raise CorruptDiskFileError("parent locator", f"{length} bytes at {offset}")
    try:
        return item[offset : offset + length].decode("utf-16-le")
    except UnicodeDecodeError as error:
        raise CorruptDiskFileError("parent locator", f"no text at {offset}") from error


def _linkage(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError as error:
        raise CorruptDiskFileError("parent locator", f"linkage {text!r}") from error
