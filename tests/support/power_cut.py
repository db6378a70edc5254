"""A power cut at any system call: records what a program does to the files of one folder, and
builds what could be left of them.

The model, per file: what was synced is there. Of the writes, truncations and punched holes since,
every 512-byte sector shows some prefix (a page is written back as it was at some moment), each
sector another one, and so does the length; bytes that never reached the disk read as zeros. A sync
covers only what was done before it began. Names (create, rename) reach the disk in order, as a
journalling file system does it: all up to the last sync of the folder, and some of those after it.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from appliance.blocks import overlay_files

SECTOR = 512


@dataclass
class Inode:
    changes: list[tuple[int, Callable[[bytearray], None]]] = field(default_factory=list)
    syncs: list[tuple[int, int]] = field(default_factory=list)  # (when it ended, what it covers)


@dataclass
class PowerCutRecorder:
    """Installed with `install`; `clock` counts the events, and a cut is a value of it."""

    folder: Path
    clock: int = 0
    during_sync: Callable[[], None] | None = None  # runs while a data sync is under way
    inodes: list[Inode] = field(default_factory=list)
    names: list[tuple[int, str, Inode | None]] = field(default_factory=list)
    folder_syncs: list[int] = field(default_factory=list)
    _open: dict[int, Inode | None] = field(default_factory=dict)  # None: the folder itself
    _current: dict[str, Inode] = field(default_factory=dict)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("open", "close", "write", "pwrite", "pwritev", "ftruncate", "replace"):
            monkeypatch.setattr(os, name, self._wrapped(name, getattr(os, name)))
        for name in ("fsync", "fdatasync"):
            monkeypatch.setattr(os, name, self._sync(getattr(os, name)))
        punch = self._wrapped("punch", overlay_files.punch_hole)
        monkeypatch.setattr(overlay_files, "punch_hole", punch)

    def _wrapped(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            position = self._position(name, args)
            result = real(*args, **kwargs)
            getattr(self, f"_on_{name}")(result, position, *args)
            return result

        return call

    def _position(self, name: str, args: Sequence[Any]) -> int:
        tracked = name == "write" and self._open.get(args[0]) is not None
        return os.lseek(args[0], 0, os.SEEK_CUR) if tracked else 0

    def _tick(self) -> int:
        self.clock += 1
        return self.clock

    def _on_open(self, fd: int, _: int, path: Any, flags: int, *rest: Any) -> None:
        path = Path(path)
        if path == self.folder:
            self._open[fd] = None
        elif path.parent == self.folder:
            if path.name not in self._current:
                self._name(path.name, Inode())
                self.inodes.append(self._current[path.name])
            inode = self._current[path.name]
            self._open[fd] = inode
            if flags & os.O_TRUNC:
                self._change(fd, lambda content: content.clear())

    def _on_close(self, result: None, _: int, fd: int) -> None:
        self._open.pop(fd, None)

    def _on_write(self, done: int, position: int, fd: int, data: bytes) -> None:
        self._change_bytes(fd, position, bytes(data[:done]))

    def _on_pwrite(self, done: int, _: int, fd: int, data: bytes, offset: int) -> None:
        self._change_bytes(fd, offset, bytes(data[:done]))

    def _on_pwritev(self, done: int, _: int, fd: int, data: Sequence[bytes], offset: int) -> None:
        self._change_bytes(fd, offset, b"".join(data)[:done])

    def _on_punch(self, result: None, _: int, fd: int, offset: int, length: int) -> None:
        def punch(content: bytearray) -> None:
            stop = min(len(content), offset + length)
            content[offset:stop] = bytes(max(0, stop - offset))

        self._change(fd, punch)

    def _on_ftruncate(self, result: None, _: int, fd: int, size: int) -> None:
        def truncate(content: bytearray) -> None:
            del content[size:]
            content.extend(bytes(size - len(content)))

        self._change(fd, truncate)

    def _on_replace(self, result: None, _: int, source: Any, target: Any) -> None:
        if Path(source).parent == self.folder:
            inode = self._current.pop(Path(source).name)
            self._name(Path(target).name, inode)
            self.names.append((self.clock, Path(source).name, None))  # one step with the above

    def _sync(self, real: Callable[[int], None]) -> Callable[[int], None]:
        def sync(fd: int) -> None:
            tracked, inode, began = fd in self._open, self._open.get(fd), self.clock
            if inode is not None and self.during_sync is not None:
                self.during_sync()
            if inode is not None:
                inode.syncs.append((self._tick(), began))
            elif tracked:
                self.folder_syncs.append(self._tick())

        return sync

    def _name(self, name: str, inode: Inode) -> None:
        self._current[name] = inode
        self.names.append((self._tick(), name, inode))

    def _change_bytes(self, fd: int, offset: int, data: bytes) -> None:
        def write(content: bytearray) -> None:
            if len(content) < offset:
                content.extend(bytes(offset - len(content)))
            content[offset : offset + len(data)] = data

        self._change(fd, write)

    def _change(self, fd: int, change: Callable[[bytearray], None]) -> None:
        inode = self._open.get(fd)
        if inode is not None:
            inode.changes.append((self._tick(), change))

    # what is left

    def surviving_files(self, cut: int, rng: random.Random, mode: str) -> dict[str, bytes]:
        """Return name -> content after a cut; `mode` is lost, kept or mixed."""
        synced = max((when for when in self.folder_syncs if when <= cut), default=0)
        reached = {"lost": synced, "kept": cut, "mixed": rng.randint(synced, max(synced, cut))}
        found: dict[str, Inode] = {}
        for when, name, inode in self.names:
            if when <= reached[mode]:
                if inode is None:
                    found.pop(name, None)
                else:
                    found[name] = inode
        return {name: _surviving(inode, cut, rng, mode) for name, inode in found.items()}


def without_syncs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make syncs free, for a test whose files need not survive the test."""
    for name in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, name, lambda fd: None)


def _surviving(inode: Inode, cut: int, rng: random.Random, mode: str) -> bytes:
    covered = max((covers for ended, covers in inode.syncs if ended <= cut), default=0)
    content = bytearray()
    for when, change in inode.changes:
        if when <= covered:
            change(content)
    images = [bytes(content)]
    for when, change in inode.changes:
        if covered < when <= cut:
            change(content)
            images.append(bytes(content))
    if mode != "mixed":
        return images[0 if mode == "lost" else -1]
    size = len(rng.choice(images))
    sectors = []
    for start in range(0, size, SECTOR):
        sector = rng.choice(images)[start : start + SECTOR]
        sectors.append(sector.ljust(SECTOR, b"\0"))
    return b"".join(sectors)[:size]
