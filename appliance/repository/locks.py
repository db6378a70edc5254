# ruff: noqa: PTH102, PTH208  (the crash tests count and cut system calls on module os)
"""Who is at work in a repository on a local file system, and who keeps whom out.

A session is a file `locks/<kind>-<run id>.lock`, a small JSON document that its process holds with
flock. It becomes visible whole and locked (written in a temporary file, then linked), so a file
that can be locked belongs to nobody alive, and whoever finds it removes it. Beside them lie lock
files without content that are never removed:

- `locks/gc`: garbage collection holds it exclusively, from mark to the end of the sweep.
- `locks/index`: backups and garbage collection share it, rebuild-index and delete hold it
  exclusively.
- `locks/unlisted`: a reader that cannot write its session file (the storage is full or read-only)
  shares it, garbage collection holds it exclusively. So one can always restore from a full
  repository, and garbage collection starts though its own session file may fail. (It needs a little
  room for the index; what killed runs had begun goes first.)

- `locks/points`: forget shares it for its one delete; garbage collection holds it exclusively while
  it looks what there is (rule 9). The only lock that is waited for: both are short.

Whatever else cannot start is told who is in the way, by a LockedError; nothing waits.

Lock table
==========

Rows start while columns run. A dot: both go on and neither notices.

| starting       | backup | read | check | forget | gc mark | gc sweep | rebuild-index |
|----------------|--------|------|-------|--------|---------|----------|---------------|
| backup         | .      | .    | .     | 1      | 2       | 3        | refused       |
| read           | .      | .    | .     | 1      | 1       | 4        | 5             |
| check          | 6      | .    | .     | 1      | 1       | 4        | 5             |
| forget, prune  | 1      | 1    | 1     | 7      | 8       | 8        | .             |
| gc (mark)      | 2      | 1    | 1     | 8      | refused | refused  | refused       |
| gc (sweep)     | 3      | 4    | 4     | 8      | -       | -        | -             |
| rebuild-index  | refused| 5    | 5     | .      | refused | refused  | refused       |
| delete         | refused| 12   | 12    | 12     | refused | refused  | refused       |

"read" is restore, export, instant recovery and diff; a backup is one of its parent point as well.

1. Who reads a point registers a session that pins its roots, and *then* looks whether the manifest
   is (still) there. Forget removes manifests and asks nobody. Mark lists the manifests *first* and
   reads the pins *then*. So a pinned point stays readable until its session closes, forgotten or
   not; and a point forgotten before it was pinned is not found, which is an orderly error.
2. A running backup owns packs that no manifest names yet, and may refer to old chunks that mark
   finds unused. Therefore sweeping waits, see 3; a backup that ends during mark is one of these.
3. After mark, garbage collection announces: what is doomed is no longer offered for deduplication
   (whatever an older backup adds to the index until the sweep has ended), and the generation is
   one higher. Only then it lists the backups. It sweeps when none of an older generation is
   alive (`older_backups`), after marking once more from the manifests that appeared since the
   first mark. A backup of the new generation cannot refer to doomed chunks, and is not waited for.
   `register` reads the generation again once the session is visible, so that a backup cannot slip
   in with an old generation between announcement and listing.
4. What the pins reach is never swept, but may move to another pack. A place in a pack is a hint:
   a reader that finds the pack gone looks the digest up again.
5. rebuild-index fills the index anew in one transaction: readers look up in the old one or in the
   new. One that cannot be opened at all is removed; a process that still has it open is refused
   its next backup or collection (`ChunkIndex.check_current`).
6. Check starts from the manifests it listed and takes no notice of newer ones. What it repairs, it
   repairs under the lock `gc`, or leaves to the next check.
7. Removing a manifest that is gone already is no error.
8. Mark may count a point that is being forgotten; the next collection removes what it kept.
9. Why a sweep loses nothing. Let T be the moment, after the last older backup has ended, at which
   garbage collection holds `points` and has listed the sessions; then it lists the manifests. No
   manifest vanishes between the two, and a backup that ends there has committed before it ends.
   So what it sees covers every manifest and every pin that there is at T. All of it is marked, and
   what of it was doomed is rescued: offered again, its record kept.
   Whatever appears later refers to (a) records that it wrote itself, into packs that are not in
   the announcement; (b) digests that the index offered to it: it is of the new generation, so none
   that is doomed; (c) chunks of its parent, which it has pinned and *then* seen to be there: the
   parent is one of T, or a later one, to which the same applies.
   The sweep removes packs of the announcement only, and moves every record in them that the index
   offers at that time, whether a point refers to it or not. So what a backup may have looked up is
   never lost; only doomed records are, and to these nobody can come back.
10. Until it is swept a doomed record can be read: a backup older than the announcement may commit a
   point that refers to it, and that point is whole at once, not only when it has been rescued.
11. The sweep's order: new packs; the names of the new index segments, noted in the index; these
   segments, without the removed packs; the index in one transaction (fsynced); old index segments
   deleted; packs deleted; and only then the index forgets the names of the old segments. So nobody
   who opens the repository meanwhile takes in a segment, old or new, that would bring back doomed
   entries: taking in looks, inside its transaction, whether the segment is still there and still
   unknown. Killed anywhere, the sweep leaves packs that no segment or index lists, or records that
   nobody uses: the next collection's work.
12. While a repository is deleted backup, gc, rebuild-index and another delete are refused. Readers
   are looked for once its session is visible, and then it is refused itself; who begins to read
   later finds no key slot, or no point, which is an orderly error.

Thread model: any thread, any process of one machine (or of several, where flock works across them).
A process that holds a session must not fork children that outlive it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from appliance.base.clock import Clock, SystemClock
from appliance.base.errors import ApplianceError, StorageError, StorageFullError
from appliance.base.ids import RunId
from appliance.base.locked_file import LockMode, open_if_alive, published, try_lock

LOCKS = "locks"
SESSION_LIMIT_BYTES = 64 << 20  # of a check that pins 100,000 points of 9 disks
_UNWRITABLE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES})
_TEMPORARY = re.compile(r"\d+-[0-9a-f]{16}")


class SessionKind(StrEnum):
    BACKUP = "backup"
    READER = "reader"
    GC = "gc"
    REBUILD_INDEX = "rebuild-index"
    DELETE = "delete"


_SESSION_FILE = re.compile(rf"({'|'.join(SessionKind)})-[0-9A-Za-z-]{{1,64}}\.lock")
_Lock = tuple[str, LockMode]
_GC, _INDEX, _UNLISTED, _POINTS = "gc", "index", "unlisted", "points"
_TAKES: dict[SessionKind, tuple[_Lock, ...]] = {
    SessionKind.BACKUP: ((_INDEX, LockMode.SHARED),),
    SessionKind.READER: (),
    SessionKind.GC: (
        (_GC, LockMode.EXCLUSIVE),
        (_INDEX, LockMode.SHARED),
        (_UNLISTED, LockMode.EXCLUSIVE),
    ),
    SessionKind.REBUILD_INDEX: ((_INDEX, LockMode.EXCLUSIVE),),
    SessionKind.DELETE: ((_INDEX, LockMode.EXCLUSIVE), (_UNLISTED, LockMode.EXCLUSIVE)),
}
_UNLISTED_TAKES: dict[SessionKind, tuple[_Lock, ...]] = {
    SessionKind.READER: ((_UNLISTED, LockMode.SHARED),),
    SessionKind.GC: (),  # its locks protect it; only its name is missing from listings
    SessionKind.REBUILD_INDEX: (),
}


class SessionDetails(BaseModel):
    """What a session says about itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    purpose: str = Field(default="", max_length=500)
    """For the operator who is told that it is in the way: `backup of web`."""
    roots: tuple[Annotated[str, Field(pattern="^[0-9a-f]{64}$")], ...] = ()
    """Root digests (hex) of the images it reads: pinned until it ends."""


class LiveSession(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: SessionKind
    run_id: RunId
    pid: int
    started_at: datetime
    generation: int
    """Announcements of garbage collection that its index honours."""
    details: SessionDetails

    def __str__(self) -> str:
        purpose = f" ({self.details.purpose})" if self.details.purpose else ""
        return f"{self.kind} {self.run_id}{purpose}, process {self.pid}"


class LockedError(ApplianceError):
    """Another operation is at work in the repository; wait for it or stop it, then run again."""

    code = "repository.locked"
    retryable = True

    def __init__(self, kind: SessionKind, holders: Sequence[LiveSession]) -> None:
        names = "; ".join(map(str, holders)) or "a session that is not listed"
        super().__init__(f"{kind} cannot start beside: {names}")
        self.kind = kind
        self.holders = tuple(holders)


class SessionLocks:
    def __init__(self, root: Path, *, clock: Clock | None = None) -> None:
        self._folder = root / LOCKS
        self._clock = clock or SystemClock()

    def prepare(self) -> None:
        """Make folder and lock files; part of `init`, so that a full disk can still be locked."""
        try:
            with suppress(FileExistsError):
                os.mkdir(self._folder, 0o700)
            for name in (_GC, _INDEX, _UNLISTED, _POINTS):
                os.close(self._open(name))
        except OSError as error:
            raise _storage_error(self._folder, error) from error

    @contextmanager
    def register(
        self,
        kind: SessionKind,
        run_id: RunId,
        *,
        details: SessionDetails | None = None,
        generation: Callable[[], int] = lambda: 0,
    ) -> Iterator[LiveSession]:
        """Hold a session for the block; it ends with the process at the latest.

        Args:
            run_id: globally unique and never used again, not even by the next process.
            generation: reads the announced generation. The session's index must honour at least
                the generation it was given in the end.

        Raises:
            LockedError: an operation is at work that this one cannot run beside.
            StorageFullError, StorageError: the session cannot be written (backups only, when
                full) or locked.
        """
        with ExitStack() as stack:
            try:
                for name, mode in _TAKES[kind]:
                    self._take(stack, kind, name, mode)
                session = self._enlist(stack, kind, run_id, details or SessionDetails(), generation)
            except OSError as error:
                raise _storage_error(self._folder, error) from error
            yield session

    def live(self, kind: SessionKind | None = None) -> list[LiveSession]:
        """List who is alive, by run id; remove what dead ones left.

        Raises:
            StorageError: it cannot be told. Never a partial answer: sweeping depends on it.
        """
        try:
            names = sorted(os.listdir(self._folder))
            found = [self._look(name) for name in names if _is_session(name, kind)]
        except FileNotFoundError:
            return []  # no session ever
        except OSError as error:
            raise _storage_error(self._folder, error) from error
        return sorted((s for s in found if s is not None), key=lambda s: (s.run_id, s.kind))

    def older_backups(self, generation: int) -> list[LiveSession]:
        """Backups that do not honour the announcement `generation`: sweeping waits for them."""
        return [s for s in self.live(SessionKind.BACKUP) if s.generation < generation]

    @contextmanager
    def forgetting(self) -> Iterator[None]:
        """Around the removal of a manifest; waits for a short while. Raises StorageError."""
        with self._waited_for(LockMode.SHARED):
            yield

    @contextmanager
    def points_stay(self) -> Iterator[None]:
        """No manifest is removed in the block, so keep it short. Raises StorageError."""
        with self._waited_for(LockMode.EXCLUSIVE):
            yield

    @contextmanager
    def _waited_for(self, mode: LockMode) -> Iterator[None]:
        try:
            fd = self._open(_POINTS)
        except OSError as error:
            raise _storage_error(self._folder, error) from error
        try:
            fcntl.flock(fd, mode)
            yield
        finally:
            os.close(fd)

    def _take(self, stack: ExitStack, kind: SessionKind, name: str, mode: LockMode) -> None:
        fd = self._open(name)
        if not try_lock(fd, mode):
            os.close(fd)
            raise LockedError(kind, self._holders(kind, name, mode))
        stack.callback(os.close, fd)

    def _holders(self, kind: SessionKind, name: str, mode: LockMode) -> list[LiveSession]:
        """Who can hold lock `name` against `mode`, as far as they are listed."""
        return [
            session
            for session in self.live()
            for held, held_mode in _TAKES[session.kind]
            if held == name and LockMode.EXCLUSIVE in (mode, held_mode)
        ]

    def _enlist(
        self,
        stack: ExitStack,
        kind: SessionKind,
        run_id: RunId,
        details: SessionDetails,
        generation: Callable[[], int],
    ) -> LiveSession:
        while True:
            session = LiveSession(
                kind=kind,
                run_id=run_id,
                pid=os.getpid(),
                started_at=self._clock.now(),
                generation=generation(),
                details=details,
            )
            with ExitStack() as visible:
                try:
                    self._publish(visible, session)
                except OSError as error:
                    if error.errno not in _UNWRITABLE or kind not in _UNLISTED_TAKES:
                        raise
                    for name, mode in _UNLISTED_TAKES[kind]:
                        self._take(visible, kind, name, mode)
                if generation() == session.generation:
                    stack.push(visible.pop_all())
                    return session

    def _publish(self, stack: ExitStack, session: LiveSession) -> None:
        """Make the session visible until `stack` closes. Raises OSError."""
        with suppress(FileExistsError):
            os.mkdir(self._folder, 0o700)
        path = self._folder / f"{session.kind}-{session.run_id}.lock"
        if not _is_session(path.name, session.kind):
            raise ValueError(f"not a run id: {session.run_id!r}")
        try:
            stack.enter_context(published(path, session.model_dump_json().encode()))
        except FileExistsError:
            holder = self._look(path.name)
            raise LockedError(session.kind, [holder] if holder else []) from None

    def _look(self, name: str) -> LiveSession | None:
        """Return the session of a file, or None when it is dead, then removed. Raises OSError."""
        path = self._folder / name
        fd = open_if_alive(path)
        if fd is None:
            return None
        try:
            return None if _TEMPORARY.fullmatch(name) else _read(path, fd)
        finally:
            os.close(fd)

    def _open(self, name: str) -> int:
        """Open a lock file, making it if need be. Raises OSError."""
        path = self._folder / name
        try:
            return os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            with suppress(FileExistsError):
                os.mkdir(self._folder, 0o700)
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            if error.errno not in _UNWRITABLE:
                raise
            return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)


def _is_session(name: str, kind: SessionKind | None) -> bool:
    """Temporary files count as sessions of every kind, so that dead ones are removed."""
    match = _SESSION_FILE.fullmatch(name)
    if match is None:
        return _TEMPORARY.fullmatch(name) is not None
    return kind is None or match[1] == kind


def _read(path: Path, fd: int) -> LiveSession:
    """Raises OSError; StorageError: nobody knows what the session protects."""
    size_bytes = os.fstat(fd).st_size
    if size_bytes > SESSION_LIMIT_BYTES:
        raise StorageError(f"{path}: a living session of {size_bytes} bytes")
    try:
        return LiveSession.model_validate_json(os.read(fd, size_bytes))
    except ValidationError as error:
        raise StorageError(f"{path}: a living session that cannot be read") from error


def _storage_error(path: Path, error: OSError) -> ApplianceError:
    kind = StorageFullError if error.errno in (errno.ENOSPC, errno.EDQUOT) else StorageError
    return kind(f"{error.filename or path}: {os.strerror(error.errno or 0)}")
