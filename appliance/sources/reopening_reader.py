"""A disk whose transport may break while it is read: opened when needed, opened again when lost.

Data path: a source gives one of these for each frozen disk; below it lies whatever transport was
chosen. As long as the snapshot stands, its content does not change, so a read that fails may be
repeated through a new connection, or through another transport, and the transfer goes on exactly
where it broke. Nothing above notices, except that it took longer and the report says so.

Thread model: any number of threads read; one of those that fail opens anew, the others wait for it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from appliance.base.backoff import Backoff
from appliance.base.errors import ApplianceError
from appliance.base.log import EventLog
from appliance.base.reasons import Reason
from appliance.base.run_context import CancelToken
from appliance.blocks.device import BlockReader, check_range
from appliance.blocks.extents import Extent, MappedExtent
from appliance.sources.errors import SourceReadError
from appliance.sources.frozen import TransferReport

log = EventLog(__name__)
Result = TypeVar("Result")

_MOST_REOPENED = 100  # of one disk in one run


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenTransport:
    """`confirm` raises SourceError when what was read cannot all be of one frozen state."""

    reader: BlockReader
    report: TransferReport
    confirm: Callable[[], None] = lambda: None


OpenDisk = Callable[[Sequence[Extent] | None], OpenTransport]
"""Open the best transport, given what will be read. Raises SourceError, DiskNotCoverableError."""


class ReopeningReader:
    """Both the `BlockReader` and the `Transfer` of a frozen disk."""

    def __init__(
        self,
        label: str,
        size_bytes: int,
        open_disk: OpenDisk,
        cancel: CancelToken,
        *,
        backoff: Backoff | None = None,
    ) -> None:
        self._label = label
        self._size_bytes = size_bytes
        self._open_disk = open_disk
        self._cancel = cancel
        self._backoff = backoff or Backoff()
        self._lock = threading.Lock()
        self._planned: Sequence[Extent] | None = None
        self._open: OpenTransport | None = None
        self._last_report: TransferReport | None = None
        self._reasons: tuple[Reason, ...] = ()
        self._reopened = 0
        self._closed = False

    # Transfer

    def begin(self, planned: Sequence[Extent] | None) -> None:
        self._planned = planned
        self._current(None)

    def report(self) -> TransferReport:
        if self._open is not None:
            self._repeat(lambda opened: opened.confirm())
        with self._lock:
            if self._last_report is None:
                raise ValueError("nothing was opened yet")
            return replace(
                self._last_report,
                reasons=self._last_report.reasons + self._reasons,
                reopened=self._reopened,
            )

    # BlockReader

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    def read_at(self, offset: int, length: int) -> bytes:
        check_range(offset, length, self._size_bytes)
        return self._repeat(lambda opened: opened.reader.read_at(offset, length))

    def read_into(self, offset: int, buffer: memoryview) -> None:
        check_range(offset, len(buffer), self._size_bytes)
        self._repeat(lambda opened: opened.reader.read_into(offset, buffer))

    def try_read_at(self, offset: int, length: int) -> bytes | memoryview | None:
        check_range(offset, length, self._size_bytes)
        opened = self._open
        return None if opened is None else opened.reader.try_read_at(offset, length)

    def map_extents(self, offset: int, length: int) -> list[MappedExtent]:
        check_range(offset, length, self._size_bytes)
        return self._repeat(lambda opened: opened.reader.map_extents(offset, length))

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._drop()

    # Opening and repeating

    def _repeat(self, read: Callable[[OpenTransport], Result]) -> Result:
        broken: OpenTransport | None = None
        failures = 0
        while True:
            self._cancel.check()
            opened = self._current(broken)
            try:
                return read(opened)
            except ApplianceError as error:
                failures += 1
                # another thread may have closed it under this read, which then fails anyhow
                worth_it = error.retryable or opened is not self._open
                if not worth_it or failures >= self._backoff.attempts:
                    raise
                self._note(opened, error)
                self._cancel.wait(self._backoff.wait_s(failures))
                broken = opened

    def _current(self, broken: OpenTransport | None) -> OpenTransport:
        """Return what is open; open it if nothing is, or if that is what the caller saw break."""
        with self._lock:
            if self._closed:
                raise SourceReadError(f"{self._label}: closed while it was read")
            if self._open is not None and self._open is not broken:
                return self._open
            if self._open is not None:
                self._drop()
                self._reopened += 1
                if self._reopened > _MOST_REOPENED:
                    raise SourceReadError(f"{self._label}: its connection does not hold")
            opened = self._backoff.run(
                lambda: self._open_disk(self._planned),
                self._cancel,
                lambda error: self._note_opening(error),
            )
            if opened.reader.size_bytes != self._size_bytes:
                opened.reader.close()
                raise SourceReadError(
                    f"{self._label}: {opened.reader.size_bytes} bytes by "
                    f"{opened.report.transport}, {self._size_bytes} by its snapshot"
                )
            self._open = opened
            self._last_report = opened.report
            return opened

    def _drop(self) -> None:
        opened, self._open = self._open, None
        if opened is not None:
            opened.reader.close()

    def _note(self, opened: OpenTransport, error: ApplianceError) -> None:
        with self._lock:
            if opened is self._open:  # else another thread has said so already
                self._remember(f"{opened.report.transport} broke off", error)

    def _note_opening(self, error: ApplianceError) -> None:
        self._remember("no transport could be opened", error)

    def _remember(self, what: str, error: ApplianceError) -> None:
        log.warning("disk transport failed", disk=self._label, what=what, error=error)
        reason = Reason(
            "transfer.retried",
            f"{what} ({error.code}: {error}); the transfer went on where it had stopped",
            "look at the network and the host if this comes back",
            warning=False,
        )
        if len(self._reasons) < 5:
            self._reasons += (reason,)
