"""One HttpNfcLease: its states, its deadline, what may be transferred under it.

    initializing -> ready -> done          completed
          |           |
          +-----------+----> error         failed, aborted, timed out, or its session ended

The deadline runs from `ready` and is renewed by `progress` alone, not by transfers. `on_end` is
called exactly once, when no transfer goes on any more: before the new state is shown, so that who
sees it finds everything cleared away, or by a transfer whose client stalls, at its end.
Source: vSphere Web Services API, HttpNfcLease; design notes on vSphere, section 4c.
Thread model: any thread; `changed` and `on_end` are called without the lock held.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum

from lab.data_plane.import_spec import FileKind
from lab.esx.datastore_path import DatastorePath

DEFAULT_TIMEOUT_S = 300.0
_TRANSFER_END_S = 2.0  # a transfer notices within a piece, unless its client stalls


class LeaseState(StrEnum):
    INITIALIZING = "initializing"
    READY = "ready"
    DONE = "done"
    ERROR = "error"


class LeaseMode(StrEnum):
    EXPORT = "export"
    IMPORT = "import"


class LeaseEndedError(Exception):
    """The call needs a lease that is ready; `fault` is the vim fault that says why it is not."""

    def __init__(self, fault: str, text: str) -> None:
        super().__init__(text)
        self.fault = fault


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseFile:
    """One device URL. `path` is a disk's descriptor, or the file itself."""

    key: str  # of the device in the VM: "/vm-12/ParaVirtualSCSIController0:0"
    import_key: str  # of the device in the spec: "/name/ParaVirtualSCSIController0:0"
    target_id: str  # the file's name in the URL, "disk-0.vmdk"
    kind: FileKind
    path: DatastorePath
    disk_key: int  # device key, 0 for what is no disk
    capacity_bytes: int  # of a disk
    stored_bytes: int  # what it takes of the datastore


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestEntry:
    """What was transferred: size and digest of the bytes on the wire."""

    key: str
    checksum_type: str  # "sha1" or "sha256"
    checksum_hex: str
    size_bytes: int
    disk: bool
    capacity_bytes: int
    populated_bytes: int


def _timed_out() -> LeaseEndedError:
    return LeaseEndedError("Timedout", "the lease timed out")


OnEnd = Callable[["Lease", LeaseState], None]


class Lease:
    def __init__(
        self,
        lease_id: str,
        mode: LeaseMode,
        *,
        timeout_s: float,
        clock: Callable[[], float],
        on_end: OnEnd,
    ) -> None:
        self.lease_id = lease_id
        self.mode = mode
        self.timeout_s = timeout_s
        self.state = LeaseState.INITIALIZING
        self.error: LeaseEndedError | None = None  # why it ended, from its beginning to end
        self.percent = 0
        self.files: Sequence[LeaseFile] = ()
        self.changed: Callable[[], None] = lambda: None
        self._clock = clock
        self._on_end = on_end
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)  # no transfer goes on
        self._left_to_transfer: LeaseState | None = None  # the last one calls on_end
        self._expires_at_s: float | None = None
        self._over = False
        self._manifest: dict[str, ManifestEntry] = {}
        self._checksum_types: dict[str, str] = {}
        self._busy: set[str] = set()

    @property
    def ended(self) -> bool:
        """It ended, or is about to be shown as ended."""
        return self._over

    @property
    def expires_at_s(self) -> float | None:
        """When the lease times out unless it is renewed; None while it cannot."""
        return None if self.ended else self._expires_at_s

    def make_ready(self, files: Sequence[LeaseFile]) -> bool:
        """The devices are there; False when the lease was ended meanwhile."""
        with self._lock:
            if self._over or self.state is not LeaseState.INITIALIZING:
                return False
            self.files = files
            self.state = LeaseState.READY
            self._expires_at_s = self._clock() + self.timeout_s
        self.changed()
        return True

    def require_ready(self) -> None:
        """Raises LeaseEndedError, also when the time is over and nobody has noticed yet."""
        if self.error is not None:
            raise self.error
        if self._over or self.state is not LeaseState.READY:
            raise LeaseEndedError("InvalidState", "the lease is not ready")
        if self._late():
            raise _timed_out()

    def _late(self) -> bool:
        expires_at_s = self.expires_at_s
        return expires_at_s is not None and expires_at_s <= self._clock()

    def _settle(self) -> None:
        """`require_ready`, and a lease whose time is over ends here at the latest."""
        if self._late():
            self.expire()
        self.require_ready()

    def progress(self, percent: int) -> None:
        """Renew the lease. Raises LeaseEndedError, ValueError for no percentage."""
        if not 0 <= percent <= 100:
            raise ValueError(f"{percent} is no percentage")
        self._settle()
        with self._lock:
            self.percent = percent
            self._expires_at_s = self._clock() + self.timeout_s
        self.changed()

    def complete(self) -> None:
        """Raises LeaseEndedError."""
        self._settle()
        self._end(LeaseState.DONE, None)

    def abort(self) -> None:
        """Raises LeaseEndedError when it has ended already."""
        if self.ended:
            self.require_ready()
        self._end(LeaseState.ERROR, LeaseEndedError("RequestCanceled", "the lease was aborted"))

    def fail(self, error: LeaseEndedError) -> None:
        """Idempotent: the first end counts."""
        self._end(LeaseState.ERROR, error)

    def expire(self) -> None:
        self.fail(_timed_out())

    def _end(self, state: LeaseState, error: LeaseEndedError | None) -> None:
        with self._idle:
            if self._over:
                return
            self.error, self._over = error, True
            idle = self._idle.wait_for(lambda: not self._busy, _TRANSFER_END_S)
            self._left_to_transfer = None if idle else state
        try:
            if idle:
                self._on_end(self, state)
        finally:
            self.state = state
            self.changed()

    # transfers

    def file(self, target_id: str) -> LeaseFile | None:
        return next((file for file in self.files if file.target_id == target_id), None)

    @contextmanager
    def transferring(self, file: LeaseFile) -> Iterator[None]:
        """One transfer of a file at a time. Raises LeaseEndedError."""
        self.require_ready()
        with self._lock:
            if self._over or file.key in self._busy:
                raise LeaseEndedError("InvalidState", f"{file.target_id} is being transferred")
            self._busy.add(file.key)
        try:
            yield
        finally:
            with self._idle:
                self._busy.discard(file.key)
                self._idle.notify_all()
                state = self._left_to_transfer if not self._busy else None
            if state is not None:
                self._on_end(self, state)

    def set_checksum_type(self, key: str, checksum_type: str) -> None:
        """For transfers that begin later. Raises ValueError for anything but sha1 and sha256."""
        if checksum_type not in ("sha1", "sha256"):
            raise ValueError(checksum_type)
        with self._lock:
            self._checksum_types[key] = checksum_type

    def checksum_type(self, file: LeaseFile) -> str:
        with self._lock:
            return self._checksum_types.get(file.key, "sha1")

    def record(self, entry: ManifestEntry) -> None:
        with self._lock:
            self._manifest[entry.key] = entry

    def manifest(self) -> list[ManifestEntry]:
        """Of what was transferred so far."""
        with self._lock:
            return list(self._manifest.values())
