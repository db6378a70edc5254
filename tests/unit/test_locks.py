"""Sessions of a repository: who is alive, who keeps whom out. Processes are real ones."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.base import locked_file
from appliance.base.clock import SystemClock
from appliance.base.errors import StorageError, StorageFullError
from appliance.base.ids import RunId, new_run_id
from appliance.base.locked_file import LockMode, try_lock
from appliance.repository.locks import (
    LiveSession,
    LockedError,
    SessionDetails,
    SessionKind,
    SessionLocks,
)

REPOSITORY_ROOT = Path(__file__).parents[2]
ROOT_A, ROOT_B = "a" * 64, "b" * 64
BACKUP, READER, GC, REBUILD, DELETE = (
    SessionKind.BACKUP,
    SessionKind.READER,
    SessionKind.GC,
    SessionKind.REBUILD_INDEX,
    SessionKind.DELETE,
)

PROCESS = """
import sys
from pathlib import Path
from appliance.base.ids import RunId
from appliance.repository.locks import LockedError, SessionDetails, SessionKind, SessionLocks
root, kind, run_id = sys.argv[1:]
locks = SessionLocks(Path(root))
try:
    details = SessionDetails(purpose="a test", roots=("a" * 64,))
    with locks.register(SessionKind(kind), RunId(run_id), details=details, generation=lambda: 7):
        print("held", flush=True)
        sys.stdin.read()
except LockedError as error:
    print("refused", flush=True)
"""


def run_id() -> RunId:
    return new_run_id(SystemClock().now())


@contextlib.contextmanager
def process(root: Path, kind: SessionKind, name: str) -> Iterator[subprocess.Popen[str]]:
    """A process that holds a session until its standard input is closed or it is killed."""
    child = subprocess.Popen(
        [sys.executable, "-c", PROCESS, str(root), kind, name],
        cwd=REPOSITORY_ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with child:
        try:
            yield child
        finally:
            child.kill()


def said(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


def files(root: Path) -> set[str]:
    return {path.name for path in (root / "locks").iterdir()} - {
        "gc",
        "index",
        "unlisted",
        "points",
    }


def test_a_session_is_seen_while_its_block_runs(tmp_path: Path) -> None:
    """With everything it was given, by anybody; afterwards there is no trace."""
    locks, others = SessionLocks(tmp_path), SessionLocks(tmp_path)
    assert others.live() == []
    name = run_id()
    details = SessionDetails(purpose="export of web", roots=(ROOT_A, ROOT_B))
    with locks.register(READER, name, details=details, generation=lambda: 3) as session:
        assert others.live() == others.live(READER) == [session]
        assert others.live(BACKUP) == []
        assert (session.kind, session.run_id, session.generation) == (READER, name, 3)
        assert (session.pid, session.details) == (os.getpid(), details)
        assert files(tmp_path) == {f"reader-{name}.lock"}
    assert others.live() == []
    assert files(tmp_path) == set()


def test_a_session_ends_with_its_block_however_it_ends(tmp_path: Path) -> None:
    """An error in the block frees everything that the session held."""
    locks = SessionLocks(tmp_path)
    with pytest.raises(ZeroDivisionError), locks.register(GC, run_id()):
        _ = 1 / 0
    assert locks.live() == []
    with locks.register(GC, run_id()), locks.register(BACKUP, run_id()):
        pass


def test_a_killed_process_leaves_nothing_alive(tmp_path: Path) -> None:
    """kill -9: its file stays behind, is recognised as dead, and removed by who looks."""
    locks = SessionLocks(tmp_path)
    name = run_id()
    with process(tmp_path, READER, name) as child:
        assert said(child) == "held"
        (session,) = locks.live(READER)
        assert (session.pid, session.generation) == (child.pid, 7)
        assert session.details == SessionDetails(purpose="a test", roots=(ROOT_A,))
        child.kill()
        child.wait()
        assert files(tmp_path) == {f"reader-{name}.lock"}
        assert locks.live(READER) == []
        assert files(tmp_path) == set()


@pytest.mark.parametrize(
    ("running", "starting"), list(itertools.product(SessionKind, SessionKind)), ids=str
)
def test_the_lock_table_between_processes(
    tmp_path: Path, running: SessionKind, starting: SessionKind
) -> None:
    """Exactly the refused cells are refused, naming who is in the way; a killed holder is none."""
    refused = {(GC, GC), (GC, REBUILD), (REBUILD, GC), (REBUILD, REBUILD), (BACKUP, REBUILD),
               (REBUILD, BACKUP)}  # fmt: skip
    for kind in (BACKUP, GC, REBUILD, DELETE):
        refused |= {(kind, DELETE), (DELETE, kind)}
    locks = SessionLocks(tmp_path)
    with process(tmp_path, running, "20261120T000000Z-00000000000a") as child:
        assert said(child) == "held"
        if (running, starting) in refused:
            with pytest.raises(LockedError) as caught, locks.register(starting, run_id()):
                pass
            assert [holder.pid for holder in caught.value.holders] == [child.pid]
            assert "20261120T000000Z-00000000000a (a test)" in str(caught.value)
            assert [session.pid for session in locks.live()] == [child.pid]
            child.kill()
            child.wait()
        with locks.register(starting, run_id()):
            assert os.getpid() in [session.pid for session in locks.live(starting)]


def test_one_of_many_processes_collects_garbage(tmp_path: Path) -> None:
    """Started together, one holds it and the others are refused at once."""
    with contextlib.ExitStack() as stack:
        children = [stack.enter_context(process(tmp_path, GC, run_id())) for _ in range(4)]
        assert sorted(said(child) for child in children) == ["held"] + ["refused"] * 3
        assert len(SessionLocks(tmp_path).live(GC)) == 1


def test_many_readers_and_writers_run_at_once(tmp_path: Path) -> None:
    """They are listed in the order of their run ids."""
    locks = SessionLocks(tmp_path)
    with contextlib.ExitStack() as stack:
        for kind in [BACKUP, READER] * 5 + [GC]:
            stack.enter_context(locks.register(kind, run_id()))
        listed = [session.run_id for session in locks.live()]
        assert len(listed) == 11
        assert listed == sorted(listed)
        assert len(locks.live(BACKUP)) == 5


def test_listing_beside_comings_and_goings_never_hurts_the_living(tmp_path: Path) -> None:
    """Whoever is registered for the whole of a listing is in it, whatever else comes and goes."""
    locks = SessionLocks(tmp_path)
    done = threading.Event()
    problems: list[str] = []

    def come_and_go() -> None:
        while not done.is_set():
            changes = itertools.chain([1], itertools.repeat(2))  # published twice under one name
            with locks.register(BACKUP, run_id(), generation=lambda c=changes: next(c)) as session:  # type: ignore[misc]
                if session not in locks.live(BACKUP):
                    problems.append(f"{session} was not seen by itself")

    threads = [threading.Thread(target=come_and_go) for _ in range(4)]
    with locks.register(READER, run_id()) as session:
        for thread in threads:
            thread.start()
        missed = sum(session not in locks.live() for _ in range(150))
        done.set()
        for thread in threads:
            thread.join()
    assert (problems, missed) == ([], 0)
    assert files(tmp_path) == set()


@pytest.mark.parametrize("announced_after", [0, 1])
def test_a_backup_cannot_slip_in_with_an_old_generation(
    tmp_path: Path, announced_after: int
) -> None:
    """Announced before it is visible: it gets the new generation. After: it is listed as old."""
    reads = itertools.count()
    old: list[LiveSession] = []

    def generation() -> int:
        """2 from the read after `announced_after` on; the announcer lists the old at once."""
        number = next(reads)
        if number == announced_after:
            old.extend(SessionLocks(tmp_path).older_backups(2))
        return 2 if number > announced_after else 1

    with SessionLocks(tmp_path).register(BACKUP, run_id(), generation=generation) as session:
        assert session.generation == 1 + (announced_after == 0)
        assert [backup.run_id for backup in old] == [session.run_id] * announced_after


def test_a_slow_listing_does_not_remove_a_session_that_became_visible_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It opened the file that the session withdrew; by now the name is that of the living one."""
    opened, go_on = threading.Event(), threading.Event()
    real = try_lock

    def slow(fd: int, mode: LockMode) -> bool:
        if threading.current_thread() is listing:
            opened.set()
            go_on.wait(30)
        return real(fd, mode)

    locks = SessionLocks(tmp_path)
    listing = threading.Thread(target=lambda: locks.live(READER))
    monkeypatch.setattr(locked_file, "try_lock", slow)
    reads = itertools.count()

    def generation() -> int:
        number = next(reads)
        if number == 1:  # visible with generation 1: the listing opens the file, then it changes
            listing.start()
            assert opened.wait(30)
        if number == 3:  # visible again, with generation 2
            go_on.set()
            listing.join()
        return 1 + (number > 0)

    with locks.register(READER, run_id(), generation=generation) as session:
        assert locks.live() == [session]
        assert session.generation == 2


def test_older_backups_are_those_of_older_generations(tmp_path: Path) -> None:
    """Readers and backups of the announced generation are not waited for."""
    locks = SessionLocks(tmp_path)
    with (
        locks.register(BACKUP, run_id(), generation=lambda: 1) as old,
        locks.register(BACKUP, run_id(), generation=lambda: 2),
        locks.register(READER, run_id(), generation=lambda: 1),
    ):
        assert locks.older_backups(2) == [old]
        assert locks.older_backups(1) == []
    assert locks.older_backups(2) == []


@pytest.fixture
def unwritable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A full disk: files can be made, but not written."""

    def fail(fd: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", fail)
        yield


@pytest.mark.usefixtures("unwritable")
def test_a_full_disk_still_lets_one_restore_and_collect_garbage(tmp_path: Path) -> None:
    """But not both at once, because the pins of the reader cannot be written down."""
    locks = SessionLocks(tmp_path)
    locks.prepare()
    with (
        locks.register(READER, run_id()),
        locks.register(READER, run_id()),
        pytest.raises(LockedError, match="not listed"),
        locks.register(GC, run_id()),
    ):
        pass
    with locks.register(GC, run_id()):
        with pytest.raises(LockedError), locks.register(READER, run_id()):
            pass
        with pytest.raises(LockedError), locks.register(GC, run_id()):
            pass
    with pytest.raises(StorageFullError, match="locks"), locks.register(BACKUP, run_id()):
        pass
    assert files(tmp_path) == set()


def test_a_session_that_cannot_be_understood_stops_the_listing(tmp_path: Path) -> None:
    """What it pins is unknown, so nobody may act on an incomplete list; once dead it is removed."""
    locks = SessionLocks(tmp_path)
    locks.prepare()
    path = tmp_path / "locks" / "reader-20261120T000000Z-00000000000a.lock"
    path.write_text('{"kind": "reader", "from": "a newer version"}')
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(StorageError, match="00000000000a"):
            locks.live()
    assert locks.live() == []
    assert not path.exists()


def test_only_session_files_are_touched(tmp_path: Path) -> None:
    """Lock files and foreign files stay; what a writer killed half way left goes."""
    locks = SessionLocks(tmp_path)
    locks.prepare()
    locks.prepare()
    (tmp_path / "locks" / "README").write_text("foreign")
    (tmp_path / "locks" / "123-0123456789abcdef").write_text("half of a ses")
    assert locks.live(GC) == []
    assert {p.name for p in (tmp_path / "locks").iterdir()} == {
        "README",
        "gc",
        "index",
        "unlisted",
        "points",
    }


def test_a_run_id_is_no_path_and_not_shared(tmp_path: Path) -> None:
    """Ids from elsewhere cannot leave the folder, and a session is one per run."""
    locks = SessionLocks(tmp_path)
    with pytest.raises(ValueError, match="run id"), locks.register(READER, RunId("../../x")):
        pass
    name = run_id()
    with locks.register(READER, name):
        with pytest.raises(LockedError, match=name), locks.register(READER, name):
            pass
        assert [session.run_id for session in locks.live()] == [name]
    assert files(tmp_path) == set()
