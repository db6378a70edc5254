"""The JSON body of a REST request, read field by field with a typed refusal for what is wrong."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MAX_BODY_BYTES = 4 << 20


class BadDocumentError(ValueError):
    """The body is not JSON, or a field is missing or of another type."""


@dataclass(frozen=True, slots=True)
class Document:
    """A JSON object; of an empty body, an empty one."""

    _fields: Mapping[str, Any]

    @classmethod
    def parse(cls, body: bytes) -> Document:
        if not body.strip():
            return cls({})
        try:
            value = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise BadDocumentError("the body is not JSON") from error
        return cls._of(value, "the body")

    @classmethod
    def _of(cls, value: Any, what: str) -> Document:
        if value is None:
            return cls({})
        if not isinstance(value, dict):
            raise BadDocumentError(f"{what} is not an object")
        return cls(value)

    def unwrapped(self, *wrappers: str) -> Document:
        """The object inside of one of `wrappers`, or this one."""
        for name in wrappers:
            if name in self._fields:
                return self.inner(name)
        return self

    def text(self, name: str, default: str | None = None) -> str:
        value = self._fields.get(name, default)
        if not isinstance(value, str):
            raise BadDocumentError(f"{name} must be a string")
        return value

    def choice(self, name: str, allowed: Collection[str]) -> str:
        value = self.text(name)
        if value not in allowed:
            raise BadDocumentError(f"{name} must be one of {', '.join(sorted(allowed))}")
        return value

    def texts(self, name: str, default: Sequence[str] | None = None) -> Sequence[str]:
        values = self._fields.get(name, default)
        if isinstance(values, str) or not isinstance(values, list | tuple):
            raise BadDocumentError(f"{name} must be a list")
        if not all(isinstance(value, str) for value in values):
            raise BadDocumentError(f"{name} must hold strings")
        return values

    def inner(self, name: str) -> Document:
        if name not in self._fields:
            raise BadDocumentError(f"{name} is missing")
        return self._of(self._fields[name], name)

    def inners(self, name: str) -> list[Document]:
        values = self._fields.get(name)
        if not isinstance(values, list):
            raise BadDocumentError(f"{name} must be a list")
        return [self._of(value, name) for value in values]
