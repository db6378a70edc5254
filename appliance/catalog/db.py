"""The database of the catalog: one SQLite file, several processes, short transactions.

Write-ahead logging with `synchronous=FULL`: a transaction that returned survives a power cut, one
that was cut off has no effect (sqlite.org/wal.html, /pragma.html). The catalog keeps no fact that
restoring needs; the repository describes itself.

Thread model: any thread, any process of one machine. A process has one connection, which a lock
hands from transaction to transaction: transactions are a few statements, and a connection per
thread would have to be collected from threads that ended. Do not fork with a `Database` open.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import stat
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Self

from appliance.base.errors import StorageError, StorageFullError
from appliance.catalog.errors import CatalogBusyError, CatalogDamagedError, CatalogVersionError
from appliance.catalog.schema import APPLICATION_ID, MIGRATIONS

BUSY_TIMEOUT_S = 20.0


class Database:
    """Open with `Database.open`; close when done."""

    def __init__(self, path: Path, connection: sqlite3.Connection, version: int) -> None:
        self._path = path
        self._connection = connection
        self._version = version
        self._lock = threading.Lock()

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        migrations: Sequence[Sequence[str]] = MIGRATIONS,
        busy_timeout_s: float = BUSY_TIMEOUT_S,
    ) -> Self:
        """Open the catalog, making or migrating it. Killed half way, the next opening goes on.

        Raises:
            CatalogVersionError: a newer program made it; it is left as it is.
            CatalogDamagedError: not a catalog, or damaged.
            CatalogBusyError, StorageFullError, StorageError.
        """
        with _translated(path):
            _make(path)
            connection = sqlite3.connect(
                path, timeout=busy_timeout_s, isolation_level=None, check_same_thread=False
            )
            try:
                _prepare(path, connection, migrations)
            except BaseException:
                connection.close()
                raise
        return cls(path, connection, len(migrations))

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def copy_to(self, path: Path) -> None:
        """Write one consistent state to a new file, for its owner only. Raises: as `open`."""
        with self._lock, _translated(self._path):
            _make(path)
            with closing(sqlite3.connect(path)) as target:
                self._connection.backup(target)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction: durable when the block has ended, undone when it raises.

        Raises: as `open`; sqlite3.IntegrityError comes as it is.
        """
        with self._transaction("BEGIN IMMEDIATE") as connection:
            yield connection

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """One consistent view; never waits for writers. Fetch all rows inside.

        Raises: as `open`.
        """
        with self._transaction("BEGIN") as connection:
            yield connection

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[sqlite3.Connection]:
        with self._lock, _translated(self._path):
            self._connection.execute(begin)
            try:
                _check_version(self._path, self._connection, self._version)
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:  # some errors have rolled back already
                    self._connection.execute("ROLLBACK")
                raise


def _prepare(
    path: Path, connection: sqlite3.Connection, migrations: Sequence[Sequence[str]]
) -> None:
    """Set the connection up and migrate; one process at a time, or changing the mode may fail."""
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA synchronous = FULL")
    with _alone(path):
        if _is_empty(connection):
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        elif _pragma(connection, "application_id") != APPLICATION_ID:
            raise CatalogDamagedError(f"{path} is not a catalog of Holdfast")
        _check_version(path, connection, len(migrations))
        connection.execute("PRAGMA journal_mode = WAL")
        for number in range(_pragma(connection, "user_version"), len(migrations)):
            connection.execute("BEGIN IMMEDIATE")
            for statement in migrations[number]:
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {number + 1}")
            connection.execute("COMMIT")


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    fd = _open(path.with_name(f"{path.name}.lock"))
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _make(path: Path) -> None:
    """Make the file for its owner only; SQLite gives its other files the same mode.

    One that is there is not opened: closing it would let go of the locks that other connections of
    this process hold on it (fcntl locks go by process), and SQLite would pull their log away.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        os.close(os.open(path, flags, 0o600))
    except FileExistsError as error:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise StorageError(f"{path} is not a file") from error
    except OSError as error:
        raise StorageError(f"{path}: {os.strerror(error.errno or 0)}") from error


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StorageError(f"{path}: {os.strerror(error.errno or 0)}") from error


def _is_empty(connection: sqlite3.Connection) -> bool:
    with closing(connection.execute("SELECT count(*) FROM sqlite_schema")) as cursor:
        count: int = cursor.fetchone()[0]
    return count == 0 and _pragma(connection, "application_id") == 0


def _check_version(path: Path, connection: sqlite3.Connection, known: int) -> None:
    found = _pragma(connection, "user_version")
    if found > known:
        raise CatalogVersionError(f"{path} has version {found}, this program knows up to {known}")


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    with closing(connection.execute(f"PRAGMA {name}")) as cursor:
        return int(cursor.fetchone()[0])


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.IntegrityError:
        raise
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise CatalogBusyError(f"{path}: {error}") from error
        if code == sqlite3.SQLITE_FULL:
            raise StorageFullError(f"{path}: {error}") from error
        if code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
            raise StorageError(f"{path}: {error}") from error
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise CatalogDamagedError(f"{path}: {error}") from error
        raise  # a wrong statement: ours to mend
