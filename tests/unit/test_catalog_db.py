"""The catalog's database: migrations, versions, kills, several processes."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from appliance.base.errors import StorageError
from appliance.catalog.db import Database
from appliance.catalog.errors import CatalogBusyError, CatalogDamagedError, CatalogVersionError

ROOT = Path(__file__).parents[2]
FIRST = (("CREATE TABLE things (id INTEGER PRIMARY KEY, name TEXT)",),)
KEYLESS = (("CREATE TABLE things (id INTEGER, name TEXT)",),)
SECOND = (
    *FIRST,
    ("ALTER TABLE things ADD COLUMN size INTEGER", "INSERT INTO things VALUES (7,'m',1)"),
)


def rows(database: Database, statement: str = "SELECT * FROM things") -> list[tuple[object, ...]]:
    with database.reading() as connection:
        return connection.execute(statement).fetchall()


def test_an_older_catalog_is_migrated_once_and_keeps_its_rows(tmp_path: Path) -> None:
    """Each migration is applied once, in order."""
    path = tmp_path / "c"
    with Database.open(path, migrations=FIRST) as old, old.writing() as connection:
        connection.execute("INSERT INTO things VALUES (1, 'kept')")
    for _ in range(2):
        with Database.open(path, migrations=SECOND) as new:
            assert rows(new) == [(1, "kept", None), (7, "m", 1)]


def test_an_older_program_refuses_a_newer_catalog_and_leaves_it_alone(tmp_path: Path) -> None:
    """The message says so; nothing is changed."""
    path = tmp_path / "c"
    Database.open(path, migrations=SECOND).close()
    with pytest.raises(CatalogVersionError, match="version 2, this program knows up to 1"):
        Database.open(path, migrations=FIRST)
    with Database.open(path, migrations=SECOND) as new:
        assert rows(new) == [(7, "m", 1)]


def test_an_open_older_program_stops_when_a_newer_one_migrates_beneath_it(tmp_path: Path) -> None:
    """Every transaction looks at the version."""
    path = tmp_path / "c"
    with Database.open(path, migrations=FIRST) as old:
        Database.open(path, migrations=SECOND).close()
        with pytest.raises(CatalogVersionError):
            rows(old)
        with pytest.raises(CatalogVersionError), old.writing() as connection:
            connection.execute("DELETE FROM things")


def test_a_migration_that_fails_half_way_leaves_the_version_before_it(tmp_path: Path) -> None:
    """Each migration is one transaction."""
    path = tmp_path / "c"
    broken = (*FIRST, ("INSERT INTO things VALUES (1, 'half')", "NONSENSE"))
    with pytest.raises(sqlite3.OperationalError):
        Database.open(path, migrations=broken)
    with Database.open(path, migrations=SECOND) as database:
        assert rows(database) == [(7, "m", 1)]


def test_a_file_that_is_no_catalog_is_refused_untouched(tmp_path: Path) -> None:
    """Neither garbage nor somebody else's database is taken for ours."""
    garbage, foreign = tmp_path / "g", tmp_path / "f"
    garbage.write_bytes(b"not a database, but long enough to look like one" * 30)
    with sqlite3.connect(foreign) as connection:
        connection.execute("CREATE TABLE theirs (x)")
    connection.close()
    for path in (garbage, foreign):
        before = path.read_bytes()
        with pytest.raises(CatalogDamagedError, match=str(path)):
            Database.open(path)
        assert path.read_bytes() == before


def test_a_folder_that_is_missing_is_a_storage_error(tmp_path: Path) -> None:
    """With the path in the message."""
    with pytest.raises(StorageError, match="nowhere"):
        Database.open(tmp_path / "nowhere" / "c")


def test_nobody_else_may_read_any_file_of_the_catalog(tmp_path: Path) -> None:
    """Also not what SQLite puts beside it."""
    with Database.open(tmp_path / "c", migrations=FIRST) as database:
        with database.writing() as connection:
            connection.execute("INSERT INTO things VALUES (1, 'a')")
        modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert {"c", "c-wal"} <= set(modes)
    assert set(modes.values()) == {0o600}


def test_a_transaction_that_raises_changes_nothing(tmp_path: Path) -> None:
    """And the next one works."""
    with Database.open(tmp_path / "c", migrations=FIRST) as database:
        with pytest.raises(KeyError), database.writing() as connection:
            connection.execute("INSERT INTO things VALUES (1, 'a')")
            raise KeyError
        assert rows(database) == []


def test_threads_share_one_database(tmp_path: Path) -> None:
    """Each transaction is whole: no increment is lost."""
    with Database.open(tmp_path / "c", migrations=FIRST) as database:
        with database.writing() as connection:
            connection.execute("INSERT INTO things VALUES (0, '0')")

        def add(_: int) -> None:
            with database.writing() as connection:
                (now,) = connection.execute("SELECT name FROM things").fetchone()
                connection.execute("UPDATE things SET name = ?", (str(int(now) + 1),))

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(add, range(100)))
        assert rows(database, "SELECT name FROM things") == [("100",)]


def test_a_database_that_others_keep_locked_is_busy_and_retryable(tmp_path: Path) -> None:
    """After the busy timeout; readers do not wait for writers at all."""
    path = tmp_path / "c"
    with (
        Database.open(path, migrations=FIRST) as holder,
        Database.open(path, migrations=FIRST, busy_timeout_s=0) as other,
        holder.writing() as connection,
    ):
        connection.execute("INSERT INTO things VALUES (1, 'a')")
        with pytest.raises(CatalogBusyError) as caught, other.writing():
            pass
        assert caught.value.retryable
        assert rows(other) == []


PROCESS = """
import sys
from pathlib import Path
from appliance.catalog.db import Database
first = (("CREATE TABLE things (id INTEGER, name TEXT)",),)
with Database.open(Path(sys.argv[1]), migrations=first) as database:
    for number in range(int(sys.argv[3])):
        with database.writing() as connection:
            connection.execute("INSERT INTO things VALUES (?, ?)", (number, sys.argv[2]))
        print(number, flush=True)
"""


def process(path: Path, name: str, count: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROCESS, str(path), name, str(count)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_processes_make_and_write_one_catalog_at_once(tmp_path: Path) -> None:
    """All begin with no file at all; no row is lost, nobody fails."""
    path = tmp_path / "c"
    children = [process(path, f"p{number}", 40) for number in range(4)]
    for child in children:
        with child:
            child.communicate()
        assert child.returncode == 0
    with Database.open(path, migrations=FIRST) as database:
        assert rows(database, "SELECT name, count(*) FROM things GROUP BY name") == [
            (f"p{number}", 40) for number in range(4)
        ]


def test_what_a_killed_process_had_committed_is_there(tmp_path: Path) -> None:
    """Everything it had said before the kill, and the file opens without any repair."""
    path = tmp_path / "c"
    with process(path, "killed", 1_000_000) as child:
        assert child.stdout is not None
        said = [int(child.stdout.readline()) for _ in range(30)]
        child.send_signal(signal.SIGKILL)
        said += [int(line) for line in child.stdout if line.endswith("\n")]
    with Database.open(path, migrations=FIRST) as database:
        kept = {row[0] for row in rows(database)}
        assert kept >= set(said)
        assert rows(database, "PRAGMA integrity_check") == [("ok",)]


def test_a_second_opening_in_one_process_takes_no_locks_from_the_first(tmp_path: Path) -> None:
    """Other processes come and go; they never pull the log away below a connection that is open."""
    path = tmp_path / "c"
    with Database.open(path, migrations=KEYLESS) as first:
        with first.writing() as connection:
            connection.execute("INSERT INTO things VALUES (1000, 'first')")
        with Database.open(path, migrations=KEYLESS) as second:
            assert len(rows(second)) == 1
            for number in range(3):
                with process(path, f"other {number}", 1) as child:
                    child.communicate()
                assert child.returncode == 0
                with first.writing() as connection:
                    connection.execute("INSERT INTO things VALUES (?, 'first')", (2000 + number,))
                assert len(rows(first)) == len(rows(second)) == 3 + 2 * number
    with Database.open(path, migrations=FIRST) as database:
        assert len(rows(database)) == 7
        assert rows(database, "PRAGMA integrity_check") == [("ok",)]
