"""The key that signs certificates: Ed25519, made once per state folder, changed by rotation.

`signing.key` holds the 32 bytes of the private key (RFC 8032), 0600. A rotation first writes the
new key to `signing.key.next`; `promote` puts it in place once the old one has signed for it. Which
of the two is right after a crash, the chain of certificates says.

Thread model: any thread, any process; rotation is under the lock of the certificate folder.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from appliance.base.atomic import create_once, fsync_directory
from appliance.base.errors import StorageError
from appliance.catalog.errors import CatalogDamagedError, SigningKeyLostError

_KEY_BYTES = 32


class SigningKey:
    """A private key; its repr shows nothing."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key

    def sign(self, message: bytes) -> bytes:
        """Return 64 bytes."""
        return self._key.sign(message)

    @property
    def public_key(self) -> bytes:
        """Its 32 bytes."""
        return self._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)

    @property
    def public_pem(self) -> bytes:
        """SubjectPublicKeyInfo (RFC 8410), as openssl reads it."""
        return self._key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


class SigningKeyFile:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._next_path = path.with_name(f"{path.name}.next")

    def load(self) -> SigningKey:
        """Raises SigningKeyLostError, CatalogDamagedError, StorageError."""
        key = _read(self._path)
        if key is None:
            raise SigningKeyLostError(f"{self._path} is missing")
        return key

    def load_or_make(self) -> SigningKey:
        """The key, made when there is none. Raises CatalogDamagedError, StorageError."""
        return _read(self._path) or _make(self._path)

    def prepare_next(self) -> SigningKey:
        """The key of a rotation that was begun, else a new one. Durable on return."""
        return _read(self._next_path) or _make(self._next_path)

    def next(self) -> SigningKey | None:
        return _read(self._next_path)

    def promote(self) -> None:
        """Put the prepared key in place of the old one, which is gone then."""
        try:
            os.replace(self._next_path, self._path)  # noqa: PTH105
            fsync_directory(self._path.parent)
        except OSError as error:
            raise StorageError(f"{self._path}: {os.strerror(error.errno or 0)}") from error


def _make(path: Path) -> SigningKey:
    raw = Ed25519PrivateKey.generate().private_bytes(
        Encoding.Raw, PrivateFormat.Raw, NoEncryption()
    )
    try:
        create_once(path, raw)
    except OSError as error:
        raise StorageError(f"{path}: {os.strerror(error.errno or 0)}") from error
    key = _read(path)  # of whichever process was first
    if key is None:
        raise SigningKeyLostError(f"{path} has vanished")
    return key


def _read(path: Path) -> SigningKey | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"{path}: {os.strerror(error.errno or 0)}") from error
    with open(fd, "rb") as file:
        mode = os.fstat(file.fileno()).st_mode
        raw = file.read(_KEY_BYTES + 1)
    if len(raw) != _KEY_BYTES or not stat.S_ISREG(mode):
        raise CatalogDamagedError(f"{path} is not a key of {_KEY_BYTES} bytes")
    if stat.S_IMODE(mode) & 0o077:
        raise CatalogDamagedError(f"{path} can be read by others: run chmod 600 on it")
    return SigningKey(Ed25519PrivateKey.from_private_bytes(raw))
