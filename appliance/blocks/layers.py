"""Stackable BlockReaders: each wraps another one and adds a single thing to it.

    RecordingReader   notes what was read, in the order of first touch: the boot profile of a guest
    PrefetchReader    reads such a profile ahead, on a thread of its own, into the cache of its base

A layer passes everything else on, and closing it closes what it wraps. Put both *under* the
overlay, so that a guest's reads of its own writes do not count.

Thread model: as of BlockReader; each class says what it adds.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence

from appliance.base.errors import ApplianceError
from appliance.base.units import KIB
from appliance.blocks.device import BlockReader, CachingReader
from appliance.blocks.extents import Extent, MappedExtent

PROFILE_UNIT_BYTES = 64 * KIB
_PREFETCH_READ_BYTES = 256 * KIB


class ReaderLayer:
    """Passes everything on; a layer overrides what it is about."""

    def __init__(self, base: BlockReader) -> None:
        self._base = base

    @property
    def size_bytes(self) -> int:
        return self._base.size_bytes

    def read_at(self, offset: int, length: int) -> bytes:
        return self._base.read_at(offset, length)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self._base.read_into(offset, buffer)

    def try_read_at(self, offset: int, length: int) -> bytes | memoryview | None:
        return self._base.try_read_at(offset, length)

    def map_extents(self, offset: int, length: int) -> list[MappedExtent]:
        return self._base.map_extents(offset, length)

    def close(self) -> None:
        self._base.close()


class RecordingReader(ReaderLayer):
    """Records the units of 64 KiB that were read, in the order of first touch.

    At most `limit_units` are kept (the default is 2 GiB of disk, about 4 MiB of memory); what comes
    later is read but not recorded. Bytes served are counted without a limit.
    """

    def __init__(self, base: BlockReader, limit_units: int = 32 * KIB) -> None:
        super().__init__(base)
        self._limit_units = limit_units
        self._lock = threading.Lock()
        self._units: dict[int, None] = {}  # keeps the order
        self._read_bytes = 0

    def read_at(self, offset: int, length: int) -> bytes:
        data = self._base.read_at(offset, length)
        self._record(offset, length)
        return data

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self._base.read_into(offset, buffer)
        self._record(offset, len(buffer))

    def try_read_at(self, offset: int, length: int) -> bytes | memoryview | None:
        data = self._base.try_read_at(offset, length)
        if data is not None:
            self._record(offset, length)
        return data

    def _record(self, offset: int, length: int) -> None:
        if not length:
            return
        first = offset // PROFILE_UNIT_BYTES
        end = -(-(offset + length) // PROFILE_UNIT_BYTES)
        with self._lock:
            self._read_bytes += length
            if end - first == 1 and first in self._units:
                return
            room = self._limit_units - len(self._units)
            for unit in range(first, end):
                if unit not in self._units:
                    if not room:
                        return
                    self._units[unit] = None
                    room -= 1

    @property
    def read_bytes(self) -> int:
        """Bytes served so far, repeated reads counted again."""
        with self._lock:
            return self._read_bytes

    def profile(self) -> list[Extent]:
        """Return what was read, in order of first touch; units touched in a row are one extent."""
        with self._lock:
            units = list(self._units)
        result: list[Extent] = []
        for unit in units:
            offset = unit * PROFILE_UNIT_BYTES
            length = min(PROFILE_UNIT_BYTES, self.size_bytes - offset)
            if result and result[-1].end == offset:
                result[-1] = Extent(result[-1].offset, result[-1].length + length)
            else:
                result.append(Extent(offset, length))
        return result


class PrefetchReader(ReaderLayer):
    """Reads `profile` ahead so that the base's cache holds it before the guest asks.

    It is a hint: what does not fit the disk is left out, and an error ends the reading ahead, kept
    in `failure`; the guest's own read meets it again and reports it. The thread is started by the
    constructor and joined by `cancel` and `close`, at the latest after one read of 256 KiB.
    """

    def __init__(self, base: CachingReader, profile: Sequence[Extent]) -> None:
        super().__init__(base)
        self._prefetch = base.prefetch
        self._cancelled = threading.Event()
        self.failure: ApplianceError | None = None
        self.fetched_bytes = 0
        self._thread = threading.Thread(target=self._run, args=(profile,), name="prefetch")
        self._thread.start()

    def _run(self, profile: Iterable[Extent]) -> None:
        try:
            for extent in profile:
                self._fetch(extent.offset, min(extent.end, self.size_bytes))
        except ApplianceError as error:
            self.failure = error

    def _fetch(self, offset: int, end: int) -> None:
        while offset < end and not self._cancelled.is_set():
            length = min(_PREFETCH_READ_BYTES, end - offset)
            self._prefetch(offset, length)
            self.fetched_bytes += length
            offset += length

    def join(self) -> None:
        """Return once the whole profile was read, or reading it ended otherwise."""
        self._thread.join()

    def cancel(self) -> None:
        """Stop reading ahead and wait for the thread; idempotent."""
        self._cancelled.set()
        self._thread.join()

    def close(self) -> None:
        self.cancel()
        super().close()
