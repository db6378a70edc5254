"""File handles: 40 bytes that survive a restart and cannot be made up.

Layout: magic and version, tree id, file number, zeros, truncated HMAC-SHA256 over all before it. A
handle is a capability, so it is authenticated with a key that the caller keeps with the exports:
the same key gives the same handles, forever. ESXi takes handles of at most 56 bytes (nfs-ganesha's
`Short_File_Handle` exists for that). Pure; thread-safe.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from functools import lru_cache
from struct import Struct

_MAGIC = 0x484E4601  # "HNF", version 1
_BODY = Struct(">IQQI")  # magic, tree id, file number, zeros
_TAG_BYTES = 16
HANDLE_BYTES = _BODY.size + _TAG_BYTES
assert HANDLE_BYTES == 40  # of 56 that ESXi takes

KEY_BYTES = 32
_REMEMBERED = 4096


@dataclass(frozen=True, slots=True)
class FileRef:
    """What a handle names."""

    tree_id: int
    number: int


class HandleCodec:
    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"a handle key has {KEY_BYTES} bytes")
        self._key = key
        # A guest's requests name a few files over and over; an HMAC costs more than the rest.
        self.encode = lru_cache(_REMEMBERED)(self._encode)
        self.decode = lru_cache(_REMEMBERED)(self._decode)

    def _encode(self, tree_id: int, number: int) -> bytes:
        body = _BODY.pack(_MAGIC, tree_id, number, 0)
        return body + self._tag(body)

    def _decode(self, handle: bytes) -> FileRef | None:
        """Return what the handle names; None for one that was not made with this key."""
        if len(handle) != HANDLE_BYTES:
            return None
        body, tag = handle[: _BODY.size], handle[_BODY.size :]
        if not hmac.compare_digest(tag, self._tag(body)):
            return None
        _, tree_id, number, _ = _BODY.unpack(body)
        return FileRef(tree_id, number)

    def _tag(self, body: bytes) -> bytes:
        return hmac.digest(self._key, body, "sha256")[:_TAG_BYTES]
