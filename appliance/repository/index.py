"""LMDB: where each chunk and node lies. Local, and rebuildable from packs or index segments.

Nothing here is the only copy of a fact. Tables: `chunks` (digest -> pack number, offset, stored
and raw length), `packs` (number -> pack id, kind, size), `numbers` (pack id -> number),
`segments` (index segments taken in), `bad` (digests in quarantine), `meta` (counters).

Invariant: an entry points only into a committed pack that stands in a committed index segment.
So another appliance that reads the segments sees everything this one may refer to.

Thread model: any thread and any process may read and write at once; LMDB serialises writers and
gives readers a snapshot. Commits are synchronous (LMDB fsyncs), so a power cut costs at most the
last batch, which opening takes in again from its segment.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lmdb

from appliance.repository.errors import RepositoryError
from appliance.repository.format import FOOTER_ENTRY, INDEX_VALUE, PackKind
from appliance.repository.pack import SealedPack

_MAP_BYTES = 1 << 40  # address space, not memory or disk: 86 bytes per entry, *measured*
_MAX_READERS = 1024


class IndexDamagedError(RepositoryError):
    """The local index cannot be read. Make it anew with `holdfast repo rebuild-index`."""

    code = "repository.index-damaged"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a record lies; `stored_bytes` includes its header."""

    pack_id: bytes
    offset: int
    stored_bytes: int
    raw_bytes: int


@dataclass(frozen=True, slots=True)
class PackInfo:
    number: int
    pack_id: bytes
    kind: PackKind
    size_bytes: int


_environments: dict[tuple[int, str], list[Any]] = {}
_environments_lock = threading.Lock()


def _open_environment(path: Path) -> Any:
    """LMDB forbids opening one environment twice in a process, so openings are counted."""
    key = (os.getpid(), str(path.resolve()))
    with _environments_lock:
        if key not in _environments:
            path.mkdir(parents=True, exist_ok=True)
            environment = lmdb.open(
                str(path),
                map_size=_MAP_BYTES,
                max_dbs=8,
                max_readers=_MAX_READERS,
                metasync=False,
            )
            environment.reader_check()
            _environments[key] = [environment, 0]
        _environments[key][1] += 1
        return _environments[key][0]


def _close_environment(path: Path) -> None:
    key = (os.getpid(), str(path.resolve()))
    with _environments_lock:
        held = _environments.get(key)
        if held is None:
            return
        held[1] -= 1
        if held[1] == 0:
            held[0].close()
            del _environments[key]


class ChunkIndex:
    def __init__(self, path: Path) -> None:
        """Open, or create, the index in folder `path`. Raises IndexDamagedError."""
        self._path = path
        try:
            self._env = _open_environment(path)
            self._chunks = self._env.open_db(b"chunks")
            self._packs = self._env.open_db(b"packs")
            self._numbers = self._env.open_db(b"numbers")
            self._segments = self._env.open_db(b"segments")
            self._bad = self._env.open_db(b"bad")
            self._meta = self._env.open_db(b"meta")
        except lmdb.Error as error:
            raise IndexDamagedError(f"{path}: {error}") from error
        self._pack_ids: dict[int, bytes] = {}
        self._closed = False

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            _close_environment(self._path)

    # Looking up

    def find(self, digest: bytes) -> Place | None:
        with self._env.begin(self._chunks) as txn:
            value = txn.get(digest)
        return None if value is None else self._place(value)

    def find_many(self, digests: Sequence[bytes]) -> dict[bytes, Place]:
        """Return the places of those that are there, in one snapshot."""
        with self._env.begin(self._chunks) as txn:
            found = txn.cursor().getmulti(digests)
        return {digest: self._place(value) for digest, value in found}

    def known(self, digests: Sequence[bytes]) -> set[bytes]:
        """Return those of `digests` that are stored, in one snapshot."""
        with self._env.begin(self._chunks) as txn:
            get = txn.get
            return {digest for digest in digests if get(digest) is not None}

    def _place(self, value: bytes) -> Place:
        number, offset, stored, raw = INDEX_VALUE.unpack(value)
        pack_id = self._pack_ids.get(number)
        if pack_id is None:
            with self._env.begin(self._packs) as txn:
                packed = txn.get(_number_key(number))
            if packed is None:
                raise IndexDamagedError(f"{self._path}: unknown pack number {number}")
            pack_id = self._pack_ids[number] = packed[:16]
        return Place(pack_id, offset, stored, raw)

    # Taking in what was written

    def insert(self, segment: str, packs: Iterable[SealedPack], *, replace: bool = False) -> None:
        """Take in an index segment's packs, all or nothing. Repeating it changes nothing.

        An entry that is there already stays, unless `replace` (GC moves records). Digests that
        stood in quarantine are healed by being inserted.
        """
        with self._env.begin(write=True) as txn:
            for pack in packs:
                number = self._number(txn, pack)
                items = sorted(
                    (digest, INDEX_VALUE.pack(number, offset, stored, raw))
                    for digest, offset, stored, raw, _kind, _flags in FOOTER_ENTRY.iter_unpack(
                        pack.entries
                    )
                )
                txn.cursor(self._chunks).putmulti(items, overwrite=replace)
                if txn.stat(self._bad)["entries"]:
                    for digest, _ in items:
                        txn.delete(digest, db=self._bad)
            txn.put(segment.encode(), b"", db=self._segments)

    def _number(self, txn: Any, pack: SealedPack) -> int:
        known = txn.get(pack.pack_id, db=self._numbers)
        if known is not None:
            return int.from_bytes(known, "big")
        number = int.from_bytes(txn.get(b"next_pack", b"\1", db=self._meta), "big")
        txn.put(b"next_pack", (number + 1).to_bytes(4, "big"), db=self._meta)
        txn.put(pack.pack_id, _number_key(number), db=self._numbers)
        value = pack.pack_id + bytes([pack.kind]) + pack.size_bytes.to_bytes(8, "big")
        txn.put(_number_key(number), value, db=self._packs)
        return number

    def segments(self) -> set[str]:
        with self._env.begin(self._segments) as txn:
            return {bytes(key).decode() for key, _ in txn.cursor()}

    # Upkeep

    def packs(self) -> list[PackInfo]:
        with self._env.begin(self._packs) as txn:
            return [
                PackInfo(
                    int.from_bytes(key, "big"),
                    value[:16],
                    PackKind(value[16]),
                    int.from_bytes(value[17:25], "big"),
                )
                for key, value in txn.cursor()
            ]

    def entries(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield (digest, packed INDEX_VALUE) in digest order, from one snapshot."""
        with self._env.begin(self._chunks) as txn:
            yield from txn.cursor()

    def entry_count(self) -> int:
        with self._env.begin() as txn:
            return int(txn.stat(self._chunks)["entries"])

    def remove(self, digests: Iterable[bytes]) -> None:
        """Forget where these lie; a later insert brings them back. All or nothing."""
        with self._env.begin(write=True) as txn:
            for digest in digests:
                txn.delete(digest, db=self._chunks)

    def replace_segments(
        self, removed_packs: Iterable[bytes], removed: Iterable[str], added: Iterable[str]
    ) -> None:
        """Drop packs and segments that GC deletes next. All or nothing."""
        with self._env.begin(write=True) as txn:
            for pack_id in removed_packs:
                number = txn.get(pack_id, db=self._numbers)
                if number is not None:
                    txn.delete(number, db=self._packs)
                    txn.delete(pack_id, db=self._numbers)
            for name in removed:
                txn.delete(name.encode(), db=self._segments)
            for name in added:
                txn.put(name.encode(), b"", db=self._segments)

    def quarantine(self, digests: Iterable[bytes]) -> None:
        """Take digests out of use: lookups miss, so the next backup stores them anew."""
        with self._env.begin(write=True) as txn:
            for digest in digests:
                txn.delete(digest, db=self._chunks)
                txn.put(digest, b"", db=self._bad)

    def quarantined(self) -> set[bytes]:
        with self._env.begin(self._bad) as txn:
            return {bytes(key) for key, _ in txn.cursor()}

    def generation(self) -> int:
        """Counts GC announcements; a writer notes it when it starts."""
        with self._env.begin(self._meta) as txn:
            return int.from_bytes(txn.get(b"generation", b"\0"), "big")

    def announce(self, doomed: Iterable[bytes]) -> int:
        """Remove `doomed` from the index and return the new generation, in one transaction."""
        with self._env.begin(write=True) as txn:
            for digest in doomed:
                txn.delete(digest, db=self._chunks)
            generation = int.from_bytes(txn.get(b"generation", b"\0", db=self._meta), "big") + 1
            txn.put(b"generation", generation.to_bytes(8, "big"), db=self._meta)
            return generation

    def clear(self) -> None:
        """Empty everything but the generation, before a rebuild."""
        with self._env.begin(write=True) as txn:
            for table in (self._chunks, self._packs, self._numbers, self._segments, self._bad):
                txn.drop(table, delete=False)
        self._pack_ids.clear()

    def size_bytes(self) -> int:
        return (self._path / "data.mdb").stat().st_size


def _number_key(number: int) -> bytes:
    return number.to_bytes(4, "big")
