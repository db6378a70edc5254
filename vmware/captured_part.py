"""One object of a captured JSON document, read field by field with its types checked.

A field that is absent or null has its default: servers leave out what they do not have. A field of
another type than expected is an error, never guessed at. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vmware.errors import VsphereError

TEXT_MAX = 1 << 20  # characters of a field
_NOTHING: Mapping[str, Any] = {}


class DocumentError(VsphereError):
    """The recovery point's captured configuration is not of a form that this version can read."""

    code = "vsphere.captured-document"


class CapturedPart:
    def __init__(self, values: Any, where: str) -> None:
        if not isinstance(values, Mapping):
            raise DocumentError(f"{where} is no object")
        self._values: Mapping[str, Any] = values
        self._where = where

    @property
    def kind(self) -> str:
        """VMODL name of its type; empty for what is not vSphere's own."""
        return self.text("_vimtype")

    def has(self, name: str) -> bool:
        return self._values.get(name) is not None

    def text(self, name: str, *, most: int = TEXT_MAX) -> str:
        """Empty when absent."""
        value = self._values.get(name)
        if value is None:
            return ""
        if not isinstance(value, str) or len(value) > most:
            raise self._wrong(name)
        return value

    def plain(self, name: str) -> str:
        """Text, a number or a flag, as text."""
        value = self._values.get(name)
        if isinstance(value, bool):
            return "TRUE" if value else "FALSE"
        return str(value) if isinstance(value, int) else self.text(name)

    def whole(self, name: str, default: int) -> int:
        value = self._values.get(name)
        if value is None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or abs(value) >= 1 << 63:
            raise self._wrong(name)
        return value

    def flag(self, name: str) -> bool | None:
        """None when absent."""
        value = self._values.get(name)
        if value is not None and not isinstance(value, bool):
            raise self._wrong(name)
        return value

    def part(self, name: str) -> CapturedPart:
        """An empty one when absent."""
        value = self._values.get(name)
        return CapturedPart(_NOTHING if value is None else value, f"{self._where}.{name}")

    def parts(self, name: str, most: int) -> list[CapturedPart]:
        value = self._values.get(name)
        if value is None:
            return []
        if isinstance(value, str) or not isinstance(value, Sequence) or len(value) > most:
            raise self._wrong(name)
        return [CapturedPart(item, f"{self._where}.{name}") for item in value]

    def _wrong(self, name: str) -> DocumentError:
        return DocumentError(f"{self._where}: {name} is not what it should be")
