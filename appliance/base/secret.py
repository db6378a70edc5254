"""Bytes that must not reach a log, a traceback, a report or a pickle by accident."""

from __future__ import annotations

import hmac
from typing import NoReturn, final


@final
class Secret:
    """`reveal` is the only way in, so that a search for it finds every use.

    Python cannot promise that memory is wiped; a secret lives as long as something refers to it.
    """

    __slots__ = ("_value",)

    def __init__(self, value: bytes) -> None:
        self._value = bytes(value)

    @classmethod
    def of_text(cls, text: str) -> Secret:
        return cls(text.encode())

    def reveal(self) -> bytes:
        return self._value

    def __len__(self) -> int:
        return len(self._value)

    def __eq__(self, other: object) -> bool:
        """Takes the same time wherever the first difference is."""
        return isinstance(other, Secret) and hmac.compare_digest(self._value, other._value)

    def __hash__(self) -> int:
        return hash((Secret, self._value))

    def __repr__(self) -> str:
        return "Secret(***)"

    def __format__(self, spec: str) -> str:
        return repr(self)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret is not to be pickled or copied")
