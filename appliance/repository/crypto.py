"""The keys of a repository and how records are sealed with them.

Every repository has one random 32-byte data key; `key_slots` says how it is kept. All other keys
come from it by HKDF-SHA256 (RFC 5869, no salt: the input is uniformly random) with one info label
each, so they tell nothing about each other. A replica shares the data key, and so the digests,
the chunk boundaries and the sealed records, which travel between repositories as they are.

A sealed record is nonce (12 bytes), ciphertext (as long as the plaintext), tag (16 bytes):
AES-256-GCM (NIST SP 800-38D). Its associated data are the record's kind and digest, so a record
cannot be passed off as another one.

Nonces are random, because several processes on several machines seal at once under one key and
there is no counter to share. SP 800-38D 8.3 then allows 2^32 records per key (a collision has a
probability below 2^-32). At the average chunk of 48 KiB that is 192 TiB of *unique* data: known
chunks are not sealed again, and garbage collection moves records as they are. Sixteen times that
still leaves the probability of one collision at 2^-25.

Thread model: everything here is immutable and may be used from any thread.
"""

from __future__ import annotations

import hmac
import os
import secrets
from dataclasses import dataclass

from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from appliance.base.secret import Secret
from appliance.repository.errors import CorruptError

KEY_BYTES = 32
NONCE_BYTES = 12
TAG_BYTES = 16
SEAL_BYTES = NONCE_BYTES + TAG_BYTES
"""What sealing adds to a record."""


class RecordAuthenticationError(CorruptError):
    """An encrypted record is damaged or was put in another's place. Run `holdfast repo check`."""

    code = "repository.record-authentication"

    def __init__(self, digest: bytes) -> None:
        super().__init__(f"record {digest.hex()} does not authenticate")
        self.digest = digest


def new_data_key() -> Secret:
    return Secret(secrets.token_bytes(KEY_BYTES))


def derive_key(secret: Secret, label: str, *, salt: bytes | None = None) -> Secret:
    """Return the 32-byte key of this label; labels are part of the format and never change."""
    info = f"holdfast/1/{label}".encode()
    hkdf = HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=salt, info=info)
    return Secret(hkdf.derive(secret.reveal()))


@dataclass(frozen=True, slots=True, kw_only=True)
class RepositoryKeys:
    """An unencrypted repository has them all too; it only does not use the record key."""

    record_key: Secret
    digest_key: Secret
    authentication_key: Secret
    chunker_seed: int
    """64 bits, for XXH3: chunk sizes tell an outsider nothing about the content."""

    @classmethod
    def derive(cls, data_key: Secret) -> RepositoryKeys:
        if len(data_key) != KEY_BYTES:
            raise ValueError(f"a data key of {len(data_key)} bytes")
        seed = derive_key(data_key, "chunker seed").reveal()
        return cls(
            record_key=derive_key(data_key, "record key"),
            digest_key=derive_key(data_key, "digest key"),
            authentication_key=derive_key(data_key, "authentication key"),
            chunker_seed=int.from_bytes(seed[:8], "little"),
        )


class RecordCipher:
    def __init__(self, record_key: Secret) -> None:
        self._cipher = AESGCM(record_key.reveal())

    def seal(self, plaintext: bytes | memoryview, kind: int, digest: bytes) -> bytes:
        """Return nonce, ciphertext and tag: `SEAL_BYTES` more than the plaintext."""
        nonce = os.urandom(NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, plaintext, bytes((kind,)) + digest)

    def open(self, sealed: bytes | memoryview, kind: int, digest: bytes) -> bytes:
        """Raises RecordAuthenticationError unless it was sealed as this kind and digest."""
        view = memoryview(sealed)
        if len(view) < SEAL_BYTES:
            raise RecordAuthenticationError(digest)
        associated = bytes((kind,)) + digest
        try:
            return self._cipher.decrypt(bytes(view[:NONCE_BYTES]), view[NONCE_BYTES:], associated)
        except InvalidTag as error:
            raise RecordAuthenticationError(digest) from error


class Authenticator:
    """Tags on manifests and index segments: keyed BLAKE3-256 over a purpose and the bytes.

    The key is in clear in an unencrypted repository: there a tag finds damage and mistakes, and
    only in an encrypted one forgery.
    """

    def __init__(self, authentication_key: Secret) -> None:
        self._key = authentication_key

    def tag(self, purpose: str, data: bytes | memoryview) -> bytes:
        """Return 32 bytes; a tag made for one purpose is worth nothing for another."""
        prefix = purpose.encode()
        hasher = blake3(len(prefix).to_bytes(4, "little") + prefix, key=self._key.reveal())
        return hasher.update(data).digest()

    def verify(self, purpose: str, data: bytes | memoryview, tag: bytes) -> bool:
        return hmac.compare_digest(self.tag(purpose, data), tag)
