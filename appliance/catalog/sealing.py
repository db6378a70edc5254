"""Passwords at rest: sealed with a key that lies beside the catalog, not in it.

A copy of the catalog alone opens nothing. Who can read the whole state folder can open everything:
a service that logs in by itself cannot have it otherwise.

A sealed secret is: version (1 byte, 1), key id (8 bytes), nonce (12), ciphertext, tag (16);
AES-256-GCM (NIST SP 800-38D). The associated data name what it belongs to, so that it opens for
nothing else. The key file holds 32 random bytes; the id is taken from them by HKDF-SHA256
(RFC 5869), to tell a lost key from a damaged secret.

Thread model: any thread, any process; there is no state but the key file, which is never changed.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from appliance.base.atomic import create_once
from appliance.base.errors import StorageError
from appliance.base.secret import Secret
from appliance.catalog.errors import CatalogDamagedError, SecretDamagedError, SecretsKeyLostError

KEY_BYTES = 32
SECRET_LIMIT_BYTES = 4096
_VERSION = 1
_ID_BYTES = 8
_NONCE_BYTES = 12
_TAG_BYTES = 16
_HEADER_BYTES = 1 + _ID_BYTES + _NONCE_BYTES


@dataclass(frozen=True, slots=True)
class _Key:
    value: Secret
    id: bytes


class SecretSealer:
    def __init__(self, key_path: Path) -> None:
        self._path = key_path

    def seal(self, secret: Secret, belongs_to: Sequence[str]) -> bytes:
        """Seal a secret of at most 4096 bytes; the first one ever makes the key file (0600).

        Raises: CatalogDamagedError: the key file is not one; StorageError.
        """
        if len(secret) > SECRET_LIMIT_BYTES:
            raise ValueError(f"a secret of {len(secret)} bytes")
        key = self._read_key() or self._make_key()
        header = bytes((_VERSION,)) + key.id
        nonce = os.urandom(_NONCE_BYTES)
        associated = _associated(header, belongs_to)
        cipher = AESGCM(key.value.reveal())
        return header + nonce + cipher.encrypt(nonce, secret.reveal(), associated)

    def unseal(self, sealed: bytes, belongs_to: Sequence[str]) -> Secret:
        """Open what was sealed for the same `belongs_to`.

        Raises:
            SecretsKeyLostError: the key file is gone, or another than it was sealed with.
            SecretDamagedError: it was changed, or belongs to something else.
            CatalogDamagedError: the key file is not one; StorageError.
        """
        if len(sealed) < _HEADER_BYTES + _TAG_BYTES or sealed[0] != _VERSION:
            raise SecretDamagedError(f"not a sealed secret: {belongs_to[0]}")
        key = self._read_key()
        if key is None:
            raise SecretsKeyLostError(f"{self._path} is missing")
        header, nonce = sealed[: 1 + _ID_BYTES], sealed[1 + _ID_BYTES : _HEADER_BYTES]
        if header[1:] != key.id:
            raise SecretsKeyLostError(f"{self._path} is not the key of {belongs_to[0]}")
        try:
            cipher = AESGCM(key.value.reveal())
            associated = _associated(header, belongs_to)
            return Secret(cipher.decrypt(nonce, sealed[_HEADER_BYTES:], associated))
        except InvalidTag as error:
            raise SecretDamagedError(f"{belongs_to[0]} does not authenticate") from error

    def _make_key(self) -> _Key:
        try:
            create_once(self._path, secrets.token_bytes(KEY_BYTES))
        except OSError as error:
            raise StorageError(f"{self._path}: {os.strerror(error.errno or 0)}") from error
        key = self._read_key()  # of whichever process was first
        if key is None:
            raise SecretsKeyLostError(f"{self._path} has vanished")
        return key

    def _read_key(self) -> _Key | None:
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(f"{self._path}: {os.strerror(error.errno or 0)}") from error
        with open(fd, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            raw = file.read(KEY_BYTES + 1)
        if len(raw) != KEY_BYTES or not stat.S_ISREG(mode):
            raise CatalogDamagedError(f"{self._path} is not a key of {KEY_BYTES} bytes")
        if stat.S_IMODE(mode) & 0o077:
            raise CatalogDamagedError(f"{self._path} can be read by others: run chmod 600 on it")
        hkdf = HKDF(algorithm=SHA256(), length=_ID_BYTES, salt=None, info=b"holdfast/1/key id")
        return _Key(Secret(raw), hkdf.derive(raw))


def _associated(header: bytes, belongs_to: Sequence[str]) -> bytes:
    """Parts with their lengths before them, so that no two lists give the same bytes."""
    parts = [part.encode() for part in belongs_to]
    return header + b"".join(len(part).to_bytes(4, "little") + part for part in parts)
