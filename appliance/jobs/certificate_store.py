"""The chain of certificates of one state folder: issued one by one, handed over to new keys.

    HOME/certificates/certificate-000001.json, …   HOME/signing.key   HOME/signing.key.next

A certificate is made under the folder's lock, appears whole or not at all, and is never changed.
The next one names the hash of the bytes that lie there, whatever they are: if somebody changed
them, that shows when the chain is checked, and does not stop new proofs.

Rotation, safe to be cut off anywhere: the new key is stored beside the old one, the old one signs
the certificate that names it, the new one takes its place. A chain that ends with a rotation to
the stored next key means that the last step is due.

Thread model: any thread, any process of one machine.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from appliance.base.atomic import create_once, make_folders
from appliance.base.clock import Clock, SystemClock
from appliance.base.errors import StorageError, StorageFullError
from appliance.base.version import __version__
from appliance.catalog.appliance_id import appliance_id
from appliance.catalog.signing_key import SigningKey, SigningKeyFile
from appliance.jobs.certificate import (
    CERTIFICATE_VERSION,
    LIMIT_BYTES,
    CertificateChainError,
    GuestProof,
    Issuer,
    RotationBody,
    VerificationBody,
    hash_of,
    read_certificate,
    seal,
)
from appliance.jobs.verification_stages import Verdict

_NAME = re.compile(r"certificate-([0-9]{6,16})\.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunProof:
    """What the certificate of one run will say; the store adds issuer, number and link."""

    run_id: str
    started_at: datetime
    ended_at: datetime
    guests: tuple[GuestProof, ...]
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    sequence: int
    path: Path
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    sequence: int
    previous_sha256: str | None


class CertificateStore:
    def __init__(self, home: Path, *, clock: Clock | None = None) -> None:
        self._home = home
        self._folder = home / "certificates"
        self._key_file = SigningKeyFile(home / "signing.key")
        self._clock = clock or SystemClock()

    def issue(self, proof: RunProof) -> Issued:
        """Sign and store; durable on return.

        Raises: SigningKeyLostError, CatalogDamagedError, StorageFullError, StorageError.
        """
        with self._locked():
            key, place = self._key(), self._next_place()
            body = VerificationBody(
                kind="verification",
                version=CERTIFICATE_VERSION,
                sequence=place.sequence,
                previous_sha256=place.previous_sha256,
                issued_at=self._clock.now(),
                issuer=self._issuer(key),
                run_id=proof.run_id,
                started_at=proof.started_at,
                ended_at=proof.ended_at,
                guests=proof.guests,
                verdict=proof.verdict,
            )
            return self._store(body, key)

    def rotate(self) -> Issued:
        """Hand over to a new key; the old one is gone then. Raises: as `issue`."""
        with self._locked():
            key, place = self._key(), self._next_place()
            successor = self._key_file.prepare_next()
            body = RotationBody(
                kind="key-rotation",
                version=CERTIFICATE_VERSION,
                sequence=place.sequence,
                previous_sha256=place.previous_sha256,
                issued_at=self._clock.now(),
                issuer=self._issuer(key),
                new_public_key=successor.public_key.hex(),
            )
            issued = self._store(body, key)
            self._key_file.promote()
            return issued

    def signing_key(self) -> SigningKey:
        """The present key, made when there is none. Raises: as `issue`."""
        with self._locked():
            return self._key()

    def paths(self) -> list[Path]:
        """All of them, oldest first."""
        return [path for _, path in self._numbered()]

    def sequences(self) -> list[int]:
        """The numbers of all, oldest first. Raises StorageError."""
        return [number for number, _ in self._numbered()]

    def path(self, sequence: int) -> Path:
        return self._folder / f"certificate-{sequence:06d}.json"

    def _key(self) -> SigningKey:
        self._finish_rotation()
        if not self._numbered():
            return self._key_file.load_or_make()
        return self._key_file.load()

    def _finish_rotation(self) -> None:
        """Do what a rotation that was cut off has left to do."""
        successor = self._key_file.next()
        numbered = self._numbered()
        if successor is None or not numbered:
            return
        path = numbered[-1][1]
        body = read_certificate(path.name, read_bounded(path)).body
        if isinstance(body, RotationBody) and body.new_public_key == successor.public_key.hex():
            self._key_file.promote()

    def _next_place(self) -> _Place:
        numbered = self._numbered()
        if not numbered:
            return _Place(sequence=1, previous_sha256=None)
        sequence, path = numbered[-1]
        return _Place(sequence=sequence + 1, previous_sha256=hash_of(read_bounded(path)))

    def _numbered(self) -> list[tuple[int, Path]]:
        try:
            names = os.listdir(self._folder)  # noqa: PTH208
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StorageError(f"{self._folder}: {os.strerror(error.errno or 0)}") from error
        found = [(int(match[1]), name) for name in names if (match := _NAME.fullmatch(name))]
        return [(number, self._folder / name) for number, name in sorted(found)]

    def _issuer(self, key: SigningKey) -> Issuer:
        return Issuer(
            appliance_id=appliance_id(self._home / "appliance-id"),
            version=__version__,
            public_key=key.public_key.hex(),
        )

    def _store(self, body: VerificationBody | RotationBody, key: SigningKey) -> Issued:
        raw = seal(body, key.sign)
        path = self.path(body.sequence)
        try:
            made = create_once(path, raw, mode=0o644)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StorageFullError(f"{path}: {os.strerror(error.errno)}") from error
            raise StorageError(f"{path}: {os.strerror(error.errno or 0)}") from error
        if not made:
            raise CertificateChainError(f"{path}: appeared while it was being issued")
        return Issued(sequence=body.sequence, path=path, sha256=hash_of(raw))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            make_folders(self._folder)
            fd = os.open(self._folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StorageError(f"{self._folder}: {os.strerror(error.errno or 0)}") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)


def read_bounded(path: Path) -> bytes:
    """Return at most one byte more than a certificate may have. Raises StorageError."""
    try:
        with path.open("rb") as file:
            return file.read(LIMIT_BYTES + 1)
    except OSError as error:
        raise StorageError(f"{path}: {os.strerror(error.errno or 0)}") from error
