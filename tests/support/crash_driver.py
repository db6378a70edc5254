"""Runs a scenario in a forked child and kills it at the N-th call that changes the file system.

The child counts calls on module `os`; the product makes all its changes through it, except for
LMDB, which does its own I/O in C (not counted, and taken to be durable). Two ways to die:

- kill: SIGKILL before the N-th call. What was written is there, whether it was fsynced or not.
- power cut: as before, and what was not fsynced is lost: bytes of files after the last fsync of
  the file (cut off or zeroed), names created, linked, renamed or removed in a folder since its
  last fsync (per folder, by the seed: lost or not).

One thread at a time makes a counted call, and the one that dies keeps the others out: a dead
machine neither writes on nor reports what it lost.

Fork from a process without threads. Events that the child reports come through a pipe.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Any

Log = Callable[[str], None]
Scenario = Callable[[Path, Log], None]

COUNTED = (
    "write",
    "writev",
    "pwrite",
    "fsync",
    "fdatasync",
    "link",
    "rename",
    "replace",
    "unlink",
    "mkdir",
    "rmdir",
    "ftruncate",
)
_real = {name: getattr(os, name) for name in (*COUNTED, "open", "close")}


@dataclass(frozen=True, slots=True)
class Ended:
    killed: bool
    calls: int
    events: list[str]


def run(
    scenario: Scenario,
    root: Path,
    *,
    kill_at: int | None = None,
    power_cut_seed: int | None = None,
) -> Ended:
    """Run `scenario(root / "r", log)` in a child; `root` is an empty folder."""
    read_fd, write_fd = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read_fd)
        _child(scenario, root, kill_at, power_cut_seed, write_fd)
    os.close(write_fd)
    text = b""
    while block := os.read(read_fd, 65536):
        text += block
    os.close(read_fd)
    _, status = os.waitpid(pid, 0)
    events = text.decode().splitlines()
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    if not killed and os.waitstatus_to_exitcode(status):
        raise AssertionError("the scenario itself failed:\n" + "\n".join(events))
    calls = int(events.pop().removeprefix("calls ")) if not killed else kill_at or 0
    return Ended(killed, calls, events)


def _child(
    scenario: Scenario, root: Path, kill_at: int | None, power_cut_seed: int | None, fd: int
) -> None:
    def log(event: str) -> None:
        _real["write"](fd, (event + "\n").encode())

    code = 1
    disk = None if power_cut_seed is None else VolatileDisk(root, power_cut_seed)
    counter = _Counter(kill_at, disk)
    try:
        counter.install()
        scenario(root / "r", log)
        log(f"calls {counter.calls}")
        code = 0
    except BaseException:
        with counter.one_at_a_time:
            log(traceback.format_exc())
    finally:
        os._exit(code)


class _Counter:
    def __init__(self, kill_at: int | None, disk: VolatileDisk | None) -> None:
        self.calls = 0
        self.one_at_a_time = threading.RLock()
        self._dying = False
        self._kill_at = kill_at
        self._disk = disk

    def install(self) -> None:
        for name in COUNTED:
            setattr(os, name, self._counted(name))
        if self._disk is not None:
            os.open = self._alone(self._disk.open)

    def _alone(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def alone(*args: Any, **named: Any) -> Any:
            with self.one_at_a_time:
                return call(*args, **named)

        return alone

    def _counted(self, name: str) -> Callable[..., Any]:
        call = _real[name] if self._disk is None else getattr(self._disk, name, _real[name])

        def counted(*args: Any, **named: Any) -> Any:
            if self._dying:  # what the loss itself does
                return _real[name](*args, **named)
            self.calls += 1
            if self.calls == self._kill_at:
                self._dying = True
                if self._disk is not None:
                    self._disk.lose()
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **named)

        return self._alone(counted)


@dataclass(slots=True)
class VolatileDisk:
    """Remembers what a power cut could lose, and loses it."""

    root: Path
    seed: int
    _files: dict[int, int] = field(default_factory=dict)  # inode -> durable bytes
    _undo: list[tuple[str, Callable[[], None]]] = field(default_factory=list)
    _kept: int = 0

    def open(self, path: Any, flags: int, mode: int = 0o777, **named: Any) -> int:
        fresh = bool(flags & os.O_CREAT) and not os.path.lexists(path)
        fd: int = _real["open"](path, flags, mode, **named)
        if fresh and self._ours(path):
            self._files[os.fstat(fd).st_ino] = 0
            self._note(path, lambda: _real["unlink"](path))
        return fd

    def fsync(self, fd: int) -> None:
        _real["fsync"](fd)
        status = os.fstat(fd)
        if S_ISDIR(status.st_mode):
            folder = os.path.realpath(f"/proc/self/fd/{fd}")
            self._undo = [item for item in self._undo if item[0] != folder]
        elif status.st_ino in self._files:
            self._files[status.st_ino] = status.st_size

    def fdatasync(self, fd: int) -> None:
        self.fsync(fd)

    def link(self, source: Any, target: Any, **named: Any) -> None:
        _real["link"](source, target, **named)
        self._note(target, lambda: _real["unlink"](target))

    def unlink(self, path: Any, **named: Any) -> None:
        kept = self._keep(path)
        _real["unlink"](path, **named)
        self._note(path, lambda: _real["link"](kept, path))

    def rename(self, source: Any, target: Any) -> None:
        old = self._keep(target) if os.path.lexists(target) else None
        _real["rename"](source, target)

        def undo() -> None:
            _real["rename"](target, source)
            if old is not None:
                _real["link"](old, target)

        self._note(target, undo)

    replace = rename

    def mkdir(self, path: Any, mode: int = 0o777, **named: Any) -> None:
        _real["mkdir"](path, mode, **named)
        self._note(path, lambda: shutil.rmtree(path, ignore_errors=True))

    def lose(self) -> None:
        """What a power cut now would lose is gone afterwards."""
        source = random.Random(self.seed)
        self._lose_bytes(source)
        lost = {folder: source.random() < 0.7 for folder, _ in self._undo}
        for folder, undo in reversed(self._undo):
            if lost[folder]:
                with suppress(FileNotFoundError):  # its folder went before
                    undo()

    def _lose_bytes(self, source: random.Random) -> None:
        for folder, _, names in os.walk(self.root):
            for name in names:
                path = Path(folder) / name
                status = path.lstat()
                durable = self._files.get(status.st_ino)
                if durable is None or not S_ISREG(status.st_mode) or status.st_size <= durable:
                    continue
                size = status.st_size
                os.truncate(path, durable)
                if source.random() < 0.5:
                    os.truncate(path, size)  # zeros, as a delayed allocation leaves them

    def _ours(self, path: Any) -> bool:
        return str(path).startswith(str(self.root)) and "/lmdb/" not in str(path)

    def _note(self, path: Any, undo: Callable[[], None]) -> None:
        if self._ours(path):
            self._undo.append((os.path.realpath(Path(path).parent), undo))

    def _keep(self, path: Any) -> Path:
        folder = self.root / "kept"
        if not folder.exists():
            _real["mkdir"](folder)
        self._kept += 1
        kept = folder / str(self._kept)
        _real["link"](path, kept, follow_symlinks=False)
        return kept
