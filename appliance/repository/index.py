"""LMDB: where each chunk and node lies. Local, and rebuildable from packs or index segments.

Nothing here is the only copy of a fact. Tables: `chunks` (digest -> pack number, offset, stored
and raw length), `doomed` (the same, of records that garbage collection has announced: they can be
read, but nothing new may refer to them), `packs` (number -> pack id, kind, size), `numbers` (pack
id -> number), `segments` (index segments taken in), `bad` (digests in quarantine), `meta`
(counters, and the open announcement).

Invariant: an entry points only into a committed pack that stands in a committed index segment.
So another appliance that reads the segments sees everything this one may refer to.

Thread model: any thread and any process may read and write at once; LMDB serialises writers and
gives readers a snapshot. Commits are synchronous (LMDB fsyncs), so a power cut costs at most the
last batch, which opening takes in again from its segment.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import lmdb

from appliance.base.clock import SystemClock
from appliance.base.errors import StorageError, StorageFullError
from appliance.repository.errors import RepositoryError
from appliance.repository.format import INDEX_VALUE, RECORD_LIMIT_BYTES, PackKind
from appliance.repository.index_file import has_all_pages
from appliance.repository.index_rows import pack_rows, sorted_rows, split_rows
from appliance.repository.pack import SealedPack

_MAP_BYTES = 1 << 40  # address space, not memory or disk: 102 bytes per entry, *measured*
_MAX_READERS = 1024
_ROWS_AT_ONCE = 1 << 16
_REFILL_ENTRIES = 1 << 20


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

    @property
    def read_bytes(self) -> int:
        """How much to read for it: no more than a record can be, whatever the index claims."""
        return min(self.stored_bytes, RECORD_LIMIT_BYTES)


@dataclass(frozen=True, slots=True)
class PackInfo:
    number: int
    pack_id: bytes
    kind: PackKind
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Announcement:
    """What garbage collection means to sweep once no backup of an older generation lives."""

    generation: int
    pack_ids: tuple[bytes, ...]


_environments: dict[tuple[int, str], list[Any]] = {}
_environments_lock = threading.Lock()


def _open_environment(path: Path) -> Any:
    """LMDB forbids opening one environment twice in a process, so openings are counted."""
    key = (os.getpid(), str(path.resolve()))
    with _environments_lock:
        if key not in _environments:
            path.mkdir(parents=True, exist_ok=True)
            try:
                environment = _lmdb_at(path, readonly=False)
            except lmdb.Error as error:
                if os.strerror(errno.EROFS) not in str(error):
                    raise
                environment = _lmdb_at(path, readonly=True)
            environment.reader_check()
            if not has_all_pages(environment, path):
                environment.close()
                raise IndexDamagedError(f"{path}: data.mdb is cut short")
            _environments[key] = [environment, 0]
        _environments[key][1] += 1
        return _environments[key][0]


def _lmdb_at(path: Path, *, readonly: bool) -> Any:
    return lmdb.open(
        str(path),
        map_size=_MAP_BYTES,
        max_dbs=8,
        max_readers=_MAX_READERS,
        metasync=False,
        readonly=readonly,
    )


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
            self._closed = False
            self.read_only: bool = self._env.flags()["readonly"]
            """The file system is: what is there can be looked up, and nothing else."""
            self._chunks = self._table(b"chunks")
            self._packs = self._table(b"packs")
            self._numbers = self._table(b"numbers")
            self._segments = self._table(b"segments")
            self._doomed = self._table(b"doomed")
            self._bad = self._table(b"bad")
            self._meta = self._table(b"meta")
            self._inode = (path / "data.mdb").stat().st_ino
            self._begin_generations()
        except (lmdb.Error, OSError) as error:
            raise IndexDamagedError(f"{path}: {error}") from error
        self._pack_ids: dict[int, bytes] = {}

    def _table(self, name: bytes) -> Any:
        return self._env.open_db(name, create=not self.read_only)

    def _begin_generations(self) -> None:
        """A new index starts at the time: past every generation of one that was lost."""
        if not self.generation():
            first = int(SystemClock().now().timestamp() * 1_000_000)
            with self._write() as txn:
                txn.put(b"generation", first.to_bytes(8, "big"), overwrite=False, db=self._meta)

    def check_current(self) -> None:
        """Raise IndexDamagedError when the index was replaced since it was opened."""
        try:
            inode = (self._path / "data.mdb").stat().st_ino
        except FileNotFoundError:
            inode = -1
        if inode != self._inode:
            raise IndexDamagedError(f"{self._path}: was replaced; open the repository again")

    def check(self) -> None:
        """Read all of it. Raises IndexDamagedError."""
        try:
            for doomed in (False, True):
                for _ in self.rows(doomed=doomed):
                    pass
            self.packs()
            self.segments()
        except (lmdb.Error, ValueError) as error:
            raise IndexDamagedError(f"{self._path}: {error}") from error

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            _close_environment(self._path)

    @contextmanager
    def _write(self) -> Iterator[Any]:
        """A write transaction. When it raises, nothing has changed.

        Raises: StorageFullError, IndexDamagedError; StorageError: the file system is read-only.
        """
        if self.read_only:
            raise StorageError(f"{self._path}: {os.strerror(errno.EROFS)}")
        try:
            with self._env.begin(write=True) as txn:
                yield txn
        except lmdb.Error as error:
            if isinstance(error, lmdb.MapFullError) or os.strerror(errno.ENOSPC) in str(error):
                raise StorageFullError(f"{self._path}: {error}") from error
            raise IndexDamagedError(f"{self._path}: {error}") from error

    @contextmanager
    def _read(self, table: Any) -> Iterator[Any]:
        """A snapshot. Raises IndexDamagedError."""
        try:
            with self._env.begin(table) as txn:
                yield txn
        except lmdb.Error as error:
            raise IndexDamagedError(f"{self._path}: {error}") from error

    # Looking up; all of it raises IndexDamagedError

    def find(self, digest: bytes) -> Place | None:
        try:  # as `_read`, which takes half as long as the rest
            with self._env.begin(self._chunks) as txn:
                value = txn.get(digest) or txn.get(digest, db=self._doomed)
                return None if value is None else self._place(txn, value)
        except lmdb.Error as error:
            raise IndexDamagedError(f"{self._path}: {error}") from error

    def find_many(self, digests: Sequence[bytes]) -> dict[bytes, Place]:
        """Return the places of those that are there, in one snapshot."""
        with self._read(self._chunks) as txn:
            found = dict(txn.cursor().getmulti(digests))
            if len(found) < len(digests) and txn.stat(self._doomed)["entries"]:
                missing = [digest for digest in digests if digest not in found]
                found.update(txn.cursor(self._doomed).getmulti(missing))
            return {digest: self._place(txn, value) for digest, value in found.items()}

    def known(self, digests: Sequence[bytes]) -> set[bytes]:
        """Return those of `digests` that a new recovery point may refer to, in one snapshot."""
        with self._read(self._chunks) as txn:
            get = txn.get
            return {digest for digest in digests if get(digest) is not None}

    def _place(self, txn: Any, value: bytes) -> Place:
        """In the transaction that found `value`: the next one may not know the pack any more."""
        number, offset, stored, raw = INDEX_VALUE.unpack(value)
        pack_id = self._pack_ids.get(number)
        if pack_id is None:
            packed = txn.get(_number_key(number), db=self._packs)
            if packed is None:
                raise IndexDamagedError(f"{self._path}: unknown pack number {number}")
            pack_id = self._pack_ids[number] = packed[:16]
        return Place(pack_id, offset, stored, raw)

    # Taking in what was written

    def insert(
        self,
        segment: str,
        packs: Iterable[SealedPack],
        *,
        without: Collection[tuple[bytes, bytes]] = (),
        unless: Callable[[], bool] = lambda: False,
    ) -> None:
        """Take in an index segment's packs, all or nothing. Repeating it changes nothing.

        An entry that is there already stays. Digests that stood in quarantine are healed by being
        inserted.

        Args:
            without: (digest, pack id) pairs that are in quarantine and stay out.
            unless: asked inside the transaction; True leaves everything as it is.
        """
        with self._write() as txn:
            if unless():
                return
            for pack in packs:
                self._insert_pack(txn, pack, without)
            txn.put(segment.encode(), b"", db=self._segments)

    def _insert_pack(
        self, txn: Any, pack: SealedPack, without: Collection[tuple[bytes, bytes]] = ()
    ) -> None:
        rows = sorted_rows(self._number(txn, pack), pack.entries)
        if without:
            rows = [row for row in rows if (row[0], pack.pack_id) not in without]
        txn.cursor(self._chunks).putmulti(rows, overwrite=False)
        if txn.stat(self._bad)["entries"]:
            for digest, _ in rows:
                txn.delete(digest, db=self._bad)

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
        with self._read(self._segments) as txn:
            return {bytes(key).decode() for key, _ in txn.cursor()}

    # Upkeep

    def packs(self) -> list[PackInfo]:
        with self._read(self._packs) as txn:
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
        with self._read(self._chunks) as txn:
            yield from txn.cursor()

    def rows(self, *, doomed: bool = False) -> Iterator[bytes]:
        """Yield digest + packed INDEX_VALUE, joined, many at a time, in digest order."""
        with self._read(self._doomed if doomed else self._chunks) as txn:
            items = iter(txn.cursor())
            while batch := b"".join(chain.from_iterable(islice(items, _ROWS_AT_ONCE))):
                yield batch

    def entry_count(self) -> int:
        with self._read(self._chunks) as txn:
            return int(txn.stat(self._chunks)["entries"])

    def forget_segments(self, names: Iterable[str]) -> None:
        """For blobs that are gone: until then the names keep others from taking them in again."""
        with self._write() as txn:
            for name in names:
                txn.delete(name.encode(), db=self._segments)

    def quarantine(self, places: Iterable[tuple[bytes, bytes]]) -> set[bytes]:
        """Take records out of use: lookups miss, so the next backup stores them anew.

        Args:
            places: (digest, pack id). A digest that lies in another pack by now stays.

        Returns: the digests that were taken out.
        """
        taken = set()
        with self._write() as txn:
            for digest, pack_id in places:
                for table in (self._chunks, self._doomed):
                    value = txn.get(digest, db=table)
                    if value is not None and self._place(txn, value).pack_id == pack_id:
                        txn.delete(digest, db=table)
                        txn.put(digest, value, db=self._bad)
                        taken.add(digest)
        return taken

    def hold_bad(self, digests: Iterable[bytes]) -> None:
        """Note as quarantined those of `digests` that are not to be found."""
        with self._write() as txn:
            for digest in digests:
                if txn.get(digest, db=self._chunks) is None:
                    txn.put(digest, txn.get(digest, b"", db=self._bad), db=self._bad)

    def drop_bad(self, digests: Iterable[bytes]) -> None:
        """Nobody needs these any more."""
        with self._write() as txn:
            for digest in digests:
                txn.delete(digest, db=self._bad)

    def quarantined(self) -> set[bytes]:
        with self._read(self._bad) as txn:
            return {bytes(key) for key, _ in txn.cursor()}

    def is_quarantined(self, digest: bytes) -> bool:
        with self._read(self._bad) as txn:
            return txn.get(digest) is not None

    # Garbage collection; `locks.py` holds the argument why this order is safe

    def generation(self) -> int:
        """Counts GC announcements; a writer notes it when it starts."""
        with self._read(self._meta) as txn:
            return int.from_bytes(txn.get(b"generation", b"\0"), "big")

    def announce(self, doomed: Iterable[bytes], pack_ids: Iterable[bytes] = ()) -> int:
        """Stop offering `doomed` for deduplication; return the new generation. One transaction."""
        with self._write() as txn:
            for digest in doomed:
                value = txn.get(digest, db=self._chunks)
                if value is not None:
                    txn.put(digest, value, db=self._doomed)
                    txn.delete(digest, db=self._chunks)
            generation = int.from_bytes(txn.get(b"generation", b"\0", db=self._meta), "big") + 1
            txn.put(b"generation", generation.to_bytes(8, "big"), db=self._meta)
            txn.put(b"announced", b"".join(pack_ids), db=self._meta)
            return generation

    def announcement(self) -> Announcement | None:
        """The announcement whose sweep has not ended yet."""
        with self._read(self._meta) as txn:
            packed = txn.get(b"announced")
            if packed is None:
                return None
            generation = int.from_bytes(txn.get(b"generation"), "big")
        ids = tuple(packed[start : start + 16] for start in range(0, len(packed), 16))
        return Announcement(generation, ids)

    def rescue(self, digests: Iterable[bytes]) -> None:
        """Offer doomed digests again: a recovery point refers to them."""
        with self._write() as txn:
            for digest in digests:
                value = txn.get(digest, db=self._doomed)
                if value is not None:
                    txn.put(digest, value, db=self._chunks, overwrite=False)
                    txn.delete(digest, db=self._doomed)

    def reserve_segments(self, names: Iterable[str]) -> None:
        """Names that GC writes next: nobody else takes them in.

        They list packs with doomed entries, which would be offered again.
        """
        with self._write() as txn:
            for name in names:
                txn.put(name.encode(), b"", db=self._segments)

    def move(self, removed: Collection[bytes], added: Iterable[SealedPack]) -> None:
        """Forget packs `removed`; what they held lies in `added` now. Durable when it returns.

        An entry moves only if it still points into a removed pack: one that was stored anew, or
        put in quarantine meanwhile, stays as it is.
        """
        with self._write() as txn:
            numbers = {txn.get(pack_id, db=self._numbers) for pack_id in removed} - {None}
            for pack in added:
                for digest, value in sorted_rows(self._number(txn, pack), pack.entries):
                    old = txn.get(digest, db=self._chunks)
                    if old is not None and old[3::-1] in numbers:
                        txn.put(digest, value, db=self._chunks)
            for pack_id in removed:
                number = txn.get(pack_id, db=self._numbers)
                if number is not None:
                    txn.delete(number, db=self._packs)
                    txn.delete(pack_id, db=self._numbers)
        self._env.sync(True)  # metasync is off: a power cut could undo the last commit

    def end_announcement(self) -> None:
        """The sweep has ended: what is doomed still lies in packs that stayed, used by nobody."""
        with self._write() as txn:
            txn.drop(self._doomed, delete=False)
            txn.delete(b"announced", db=self._meta)

    def refill(
        self,
        segments: Iterable[tuple[str, Sequence[SealedPack]]],
        without: Collection[tuple[bytes, bytes]] = (),
    ) -> None:
        """Replace everything but the generation by these segments. Readers see old or new.

        One transaction; sorted batches of a million entries keep the inserts quick.
        """
        with self._write() as txn:
            for table in (
                self._chunks,
                self._doomed,
                self._packs,
                self._numbers,
                self._segments,
                self._bad,
            ):
                txn.drop(table, delete=False)
            txn.delete(b"announced", db=self._meta)
            batch: list[SealedPack] = []
            entries = 0
            for name, packs in segments:
                txn.put(name.encode(), b"", db=self._segments)
                for pack in packs:
                    batch.append(pack)
                    entries += pack.entry_count
                    if entries >= _REFILL_ENTRIES:
                        self._insert_batch(txn, batch, without)
                        batch, entries = [], 0
            self._insert_batch(txn, batch, without)

    def _insert_batch(
        self, txn: Any, packs: Sequence[SealedPack], without: Collection[tuple[bytes, bytes]]
    ) -> None:
        if without:
            for pack in packs:
                self._insert_pack(txn, pack, without)
        elif packs:
            rows = pack_rows([(self._number(txn, pack), pack.entries) for pack in packs])
            txn.cursor(self._chunks).putmulti(split_rows(rows), overwrite=False)

    def size_bytes(self) -> int:
        return (self._path / "data.mdb").stat().st_size


def _number_key(number: int) -> bytes:
    return number.to_bytes(4, "big")
