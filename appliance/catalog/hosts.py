"""The hypervisors that were registered, with what it takes to log in.

A record never carries the password; `Hosts.password` opens it when a session is made. It is sealed
together with name, address, port, user, fingerprint and the kind of login: who can write to the
catalog, but has no key, cannot send the password to another server.

Thread model: as `db.py`.
"""

from __future__ import annotations

import json
import re
import sqlite3
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Self

from appliance.base.errors import UsageError
from appliance.base.secret import Secret
from appliance.catalog.db import Database
from appliance.catalog.errors import HostExistsError, HostInUseError, HostNotFoundError
from appliance.catalog.sealing import SecretSealer

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_ADDRESS = re.compile(r"[A-Za-z0-9._:-]{1,253}")
_TEXT_LIMIT = 256
_COLUMNS = "name, kind, address, port, user, fingerprint, server_id, settings, added_at"


LOGIN_SETTINGS = ("login", "scheme", "smb_port", "smb_protection", "nodes")
"""Of `HostRecord.settings`: how and where the password is used, of Hyper-V hosts."""


class HostKind(StrEnum):
    VSPHERE = "vsphere"
    HYPERV = "hyperv"


@dataclass(frozen=True, slots=True, kw_only=True)
class HostRecord:
    """A registered hypervisor. Raises UsageError when a field is not acceptable."""

    name: str  # letters, digits, `.`, `_`, `-`
    kind: HostKind
    address: str  # DNS name or IP address
    port: int
    user: str
    fingerprint: str  # SHA-256 of the certificate, "AA:BB:…"
    server_id: str  # the server's own identity, wherever it is reached; unique in a catalog
    added_at: datetime
    settings: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise UsageError(f"a host name is letters, digits, '.', '_', '-': {self.name!r}")
        if not _ADDRESS.fullmatch(self.address):
            raise UsageError(f"not a DNS name or IP address: {self.address!r}")
        if not 1 <= self.port <= 65535:
            raise UsageError(f"not a port: {self.port}")
        if not 1 <= len(self.user) <= _TEXT_LIMIT or not self.user.isprintable():
            raise UsageError(f"not a user name: {self.user!r}")
        if not 1 <= len(self.server_id) <= _TEXT_LIMIT:
            raise UsageError(f"not a server identity: {self.server_id!r}")

    @property
    def sealed_with(self) -> tuple[str, ...]:
        """What the password belongs to."""
        where = (self.kind, self.address, str(self.port), self.user, self.fingerprint)
        how = [f"{key}={self.settings[key]}" for key in LOGIN_SETTINGS if key in self.settings]
        return (f"host {self.name}", "password", *where, *how)

    @classmethod
    def from_row(cls, row: tuple[str, str, str, int, str, str, str, str, str]) -> Self:
        name, kind, address, port, user, fingerprint, server_id, settings, added_at = row
        return cls(
            name=name,
            kind=HostKind(kind),
            address=address,
            port=port,
            user=user,
            fingerprint=fingerprint,
            server_id=server_id,
            settings=json.loads(settings),
            added_at=datetime.fromisoformat(added_at),
        )


class Hosts:
    def __init__(self, database: Database, sealer: SecretSealer) -> None:
        self._database = database
        self._sealer = sealer

    def check_free(self, name: str) -> None:
        """Raises HostExistsError: there is a host of this name."""
        if any(host.name == name for host in self.list()):
            raise HostExistsError(f"host {name!r} is registered already")

    def add(self, host: HostRecord, password: Secret) -> None:
        """Raises: HostExistsError (the name, or the same server by another), as `Database`."""
        sealed = self._sealer.seal(password, host.sealed_with)
        with self._database.writing() as connection:
            row = connection.execute(
                "SELECT name FROM hosts WHERE name = ? OR server_id = ?",
                (host.name, host.server_id),
            ).fetchone()
            if row is not None:
                taken = f"host {row[0]!r} is registered already"
                also = "" if row[0] == host.name else f", and {host.address} is the same server"
                raise HostExistsError(taken + also)
            connection.execute(
                f"INSERT INTO hosts ({_COLUMNS}, sealed_password)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    host.name,
                    host.kind,
                    host.address,
                    host.port,
                    host.user,
                    host.fingerprint,
                    host.server_id,
                    json.dumps(host.settings),
                    host.added_at.isoformat(),
                    sealed,
                ),
            )

    def replace(self, host: HostRecord, password: Secret) -> None:
        """Change how a registered server is reached; what we made there stays known.

        Raises: HostNotFoundError; HostExistsError: it is another server than before.
        """
        sealed = self._sealer.seal(password, host.sealed_with)
        with self._database.writing() as connection:
            row = connection.execute(
                "SELECT server_id FROM hosts WHERE name = ?", (host.name,)
            ).fetchone()
            if row is None:
                raise HostNotFoundError(host.name)
            if row[0] != host.server_id:
                raise HostExistsError(
                    f"{host.address} is not the server that is registered as {host.name!r}"
                )
            connection.execute(
                "UPDATE hosts SET address = ?, port = ?, user = ?, fingerprint = ?, settings = ?,"
                " sealed_password = ? WHERE name = ?",
                (
                    host.address,
                    host.port,
                    host.user,
                    host.fingerprint,
                    json.dumps(host.settings),
                    sealed,
                    host.name,
                ),
            )

    def list(self) -> list[HostRecord]:
        """Return all, the one added first first."""
        with self._database.reading() as connection:
            rows = connection.execute(f"SELECT {_COLUMNS} FROM hosts").fetchall()
        hosts = [HostRecord.from_row(row) for row in rows]
        return sorted(hosts, key=lambda host: (host.added_at, host.name))

    def get(self, name: str) -> HostRecord:
        """Raises HostNotFoundError."""
        with self._database.reading() as connection:
            row = connection.execute(
                f"SELECT {_COLUMNS} FROM hosts WHERE name = ?", (name,)
            ).fetchone()
        if row is None:
            raise HostNotFoundError(name)
        return HostRecord.from_row(row)

    def password(self, host: HostRecord) -> Secret:
        """Open the password for exactly this record.

        Raises: HostNotFoundError, SecretsKeyLostError, SecretDamagedError (the record differs from
        the one it was sealed with), CatalogDamagedError.
        """
        with self._database.reading() as connection:
            row = connection.execute(
                "SELECT sealed_password FROM hosts WHERE name = ?", (host.name,)
            ).fetchone()
        if row is None:
            raise HostNotFoundError(host.name)
        return self._sealer.unseal(row[0], host.sealed_with)

    def remove(self, name: str, *, forget_intents: bool = False) -> None:
        """Forget a host and its password; idempotent it is not.

        Args:
            forget_intents: also forget what we made there and have not removed.

        Raises: HostNotFoundError; HostInUseError: there are open intents.
        """
        try:
            with self._database.writing() as connection:
                if forget_intents:
                    connection.execute("DELETE FROM intents WHERE host = ?", (name,))
                deleted = connection.execute("DELETE FROM hosts WHERE name = ?", (name,))
                if deleted.rowcount == 0:
                    raise HostNotFoundError(name)
        except sqlite3.IntegrityError as error:  # the foreign key of intents
            raise HostInUseError(
                f"host {name!r} has things of ours that are not removed"
            ) from error
