"""When an overlay's writes are durable: the data first, then the journal that names it.

    flush -> (group commit) -> changes taken under the lock -> fdatasync(data) -> journal group

A flush when nothing was written costs nothing, one that changed no block's place one fdatasync, any
other one two. If an fsync fails, what reached the disk is unknown and asking again would lie (the
kernel forgets the error), so from then on every change and flush raises OverlayFailedError.

Thread model: any thread. `begin_change` and `close` are called with the overlay's lock held, which
is taken here only to take the changes. Order: the group commit's turn before that lock.
"""

from __future__ import annotations

import threading
from pathlib import Path

from appliance.base.errors import StorageFullError
from appliance.base.units import KIB
from appliance.blocks.overlay_commit import GroupCommit
from appliance.blocks.overlay_data import DataFile
from appliance.blocks.overlay_errors import OverlayFailedError
from appliance.blocks.overlay_journal import Journal, Record
from appliance.blocks.overlay_map import OverlayMap

_COMPACT_MIN_RECORDS = 64 * KIB  # 2 MiB of journal: replayed in about 0.1 s
_COMPACT_FACTOR = 4


class Durability:
    def __init__(
        self,
        folder: Path,
        lock: threading.Lock,
        overlay_map: OverlayMap,
        data: DataFile,
        journal: Journal,
    ) -> None:
        """`folder` is what errors name. Compacts a journal that has grown long; raises as it."""
        self._folder = folder
        self._lock = lock
        self._map = overlay_map
        self._data = data
        self._journal = journal
        self._group_commit = GroupCommit(self._commit)
        self._failure: BaseException | None = None
        self._closed = False
        self._unsynced = False
        self._unjournaled: list[Record] = []  # a full storage refused them
        self._compact_at = _COMPACT_MIN_RECORDS
        self._compact_if_long()

    @property
    def failed(self) -> bool:
        return self._failure is not None

    def begin_change(self) -> None:
        """Of data or map; the next flush covers it. Raises OverlayFailedError: change nothing."""
        self._check_usable()
        self._unsynced = True

    def flush(self) -> None:
        """Every change that was whole before this call is durable on return.

        Raises:
            StorageFullError: no space for the journal; not durable, but a later flush may be.
            OverlayFailedError: nothing can be made durable any more.
        """
        self._group_commit.run()

    def close(self) -> None:
        """Accept no change any longer."""
        self._closed = True

    def _commit(self) -> None:
        with self._lock:
            self._check_usable()
            if not self._unsynced:
                return
            self._unsynced = False
            changes = self._unjournaled + self._map.take_changes()
            self._unjournaled = changes
            long = self._journal.record_count + len(changes) > self._compact_at
            whole = self._map.all_records() if long else None
        try:
            self._data.sync()
            if changes and (whole is None or not self._replaced_journal(whole)):
                self._journal.append(changes)
        except StorageFullError:
            self._unsynced = True
            raise
        except BaseException as error:
            self._failure = error
            raise OverlayFailedError(f"the session in {self._folder} failed: {error}") from error
        self._unjournaled = []

    def _replaced_journal(self, whole: list[Record]) -> bool:
        try:
            self._journal.replace(whole)
        except StorageFullError:
            return False
        self._compact_at = max(_COMPACT_MIN_RECORDS, _COMPACT_FACTOR * len(whole))
        return True

    def _compact_if_long(self) -> None:
        if self._journal.record_count > self._compact_at:
            whole = self._map.all_records()
            self._compact_at = max(_COMPACT_MIN_RECORDS, _COMPACT_FACTOR * len(whole))
            if self._journal.record_count > self._compact_at:
                self._replaced_journal(whole)

    def _check_usable(self) -> None:
        if self._closed:
            raise OverlayFailedError(f"the session in {self._folder} is closed")
        if self._failure is not None:
            raise OverlayFailedError(
                f"the session in {self._folder} failed earlier: {self._failure}"
            ) from self._failure
