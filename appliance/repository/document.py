"""Sealed documents: JSON that is compressed, encrypted where the repository is, and authenticated.

Manifests and quarantine notes are stored this way. The blob's name goes into the authentication,
so that one document cannot be put in the place of another.
"""

from __future__ import annotations

import zstandard
from blake3 import blake3

from appliance.repository.crypto import Authenticator, RecordCipher
from appliance.repository.errors import CorruptError, RepositoryVersionError
from appliance.repository.format import (
    DOCUMENT_HEADER,
    DOCUMENT_LIMIT_BYTES,
    DOCUMENT_MAGIC,
    MAC_BYTES,
    REPOSITORY_VERSION,
    RecordFlag,
)

_SEAL_KIND = 0x80  # never a record kind, so a sealed record cannot pass for a document


class DocumentCodec:
    """Pure and thread-safe."""

    def __init__(self, authenticator: Authenticator, cipher: RecordCipher | None) -> None:
        self._authenticator = authenticator
        self._cipher = cipher

    def encode(self, name: str, text: bytes) -> bytes:
        flags = RecordFlag.ZSTD
        payload = zstandard.ZstdCompressor(level=3).compress(text)
        if self._cipher is not None:
            flags |= RecordFlag.SEALED
            payload = self._cipher.seal(payload, _SEAL_KIND, blake3(name.encode()).digest())
        body = DOCUMENT_HEADER.pack(DOCUMENT_MAGIC, REPOSITORY_VERSION, flags, 0) + payload
        return body + self._authenticator.tag(name, body)

    def decode(self, name: str, blob: bytes) -> bytes:
        """Raises: CorruptError: damaged, moved or of another repository; RepositoryVersionError."""
        body = blob[:-MAC_BYTES]
        if len(body) < DOCUMENT_HEADER.size:
            raise CorruptError(f"{name}: cut short")
        magic, version, flags, reserved = DOCUMENT_HEADER.unpack_from(body)
        if not self._authenticator.verify(name, body, blob[-MAC_BYTES:]):
            raise CorruptError(f"{name}: damaged, or not of this repository")
        if magic == DOCUMENT_MAGIC and version > REPOSITORY_VERSION:
            raise RepositoryVersionError(f"{name} is of format version {version}")
        if magic != DOCUMENT_MAGIC or reserved:
            raise CorruptError(f"{name}: not a document")
        payload = body[DOCUMENT_HEADER.size :]
        if flags & RecordFlag.SEALED:
            if self._cipher is None:
                raise CorruptError(f"{name}: encrypted, in a repository that is not")
            payload = self._cipher.open(payload, _SEAL_KIND, blake3(name.encode()).digest())
        if zstandard.frame_content_size(payload) > DOCUMENT_LIMIT_BYTES:
            raise CorruptError(f"{name}: larger than {DOCUMENT_LIMIT_BYTES} bytes")
        return zstandard.ZstdDecompressor().decompress(
            payload, max_output_size=DOCUMENT_LIMIT_BYTES
        )
