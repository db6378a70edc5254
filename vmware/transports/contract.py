"""The contract where the disks of VMs meet the ways to read and write them.

Data path: a `Transport` (hot-add, VDDK, datastore HTTPS, NFC lease) opens the frozen disk of a
snapshot as a `DiskReader`; `choice` picks the best one that works. `DiskWriter` is the way back.
Structurally a `DiskReader` is the product's block reader, with errors and extents of this library.
One conformance suite (`tests/contract/transport.py`) runs on every implementation.

Thread model: every method of a reader may be called from several threads at once and blocks on
the network, except `try_read_at`. `refusal` and `open` of a transport may be called for several
disks at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Protocol

from vmware.errors import VsphereError

if TYPE_CHECKING:
    from vmware.inventory import DiskInfo, VmInfo
    from vmware.session import Session


def _never() -> bool:
    return False


class OutOfDiskError(VsphereError):
    """A read or write lies outside the disk."""

    code = "vsphere.transport.out-of-disk"


class BehindWindowError(VsphereError):
    """A sequential transport was asked for a place that its stream has passed; begin anew."""

    code = "vsphere.transport.behind-window"
    retryable = True


class Access(Enum):
    """In which order a disk may be read or written."""

    ANY_ORDER = "any-order"
    ASCENDING = "ascending"  # with the disorder of a few threads when reading, none when writing


class ExtentKind(Enum):
    DATA = "data"  # may hold anything
    ZERO = "zero"  # reads as zeros


@dataclass(frozen=True, slots=True)
class MappedExtent:
    """A range of a disk whose bytes are all of one kind; bytes."""

    offset: int
    length: int
    kind: ExtentKind

    @property
    def end(self) -> int:
        return self.offset + self.length


class DiskReader(Protocol):
    @property
    def size_bytes(self) -> int: ...

    @property
    def access(self) -> Access: ...

    def read_at(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes from byte `offset`; holes read as zeros.

        Raises:
            OutOfDiskError: the range does not lie inside the disk.
            BehindWindowError: `access` is ASCENDING and the stream has passed the place.
            VsphereError: the disk cannot be read (any more), retries included.
        """
        ...

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill the whole of `buffer` (writable, bytes) from byte `offset`; else as `read_at`."""
        ...

    def try_read_at(self, offset: int, length: int) -> bytes | memoryview | None:
        """Return what `read_at` would when that is in memory, else None. Never blocks."""
        ...

    def map_extents(self, offset: int, length: int) -> list[MappedExtent]:
        """Describe [offset, offset + length): contiguous, in order, equal neighbours joined.

        DATA is always a legal answer. May stop short of the end, but covers the first byte.
        """
        ...

    def close(self) -> None:
        """Give back what is held at the server (locks, leases, attached disks); idempotent.

        Wakes reads under way, which then fail. Never raises: what could not be given back is
        logged and is found by its marker later.
        """
        ...


class DiskWriter(Protocol):
    """A disk of a VM to be, or of one that is off, to be written. One thread at a time."""

    @property
    def size_bytes(self) -> int: ...

    @property
    def access(self) -> Access:
        """ASCENDING: every write begins where or after the one before ended."""
        ...

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        """Write all of `data`. What is never written reads as zeros on a new disk.

        Raises:
            OutOfDiskError: the range does not lie inside the disk.
            BehindWindowError: `access` is ASCENDING and a later place was written already.
            VsphereError: the disk cannot be written, or the server refused it.
        """
        ...

    def zero_at(self, offset: int, length: int) -> None:
        """Make the range read as zeros; costs little on a new disk, where it is zeros already."""
        ...

    def flush(self) -> None:
        """Return once what was written is with the server; for a stream, as far as one can tell."""
        ...

    def close(self) -> None:
        """Finish the disk; idempotent. Without an error, all of it is durable at the server.

        Raises: as `write_at`.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskRequest:
    """One frozen disk that is to be read."""

    session: Session
    vm: VmInfo
    snapshot_moref: str
    disk: DiskInfo  # from the snapshot's configuration, never from the VM's
    planned: tuple[tuple[int, int], ...] | None = None
    """(offset, length) of what will be read, sorted and disjoint; None: all of it, in ascending
    order; empty: nobody knows. For reading ahead: other reads give the right bytes, only later."""
    cancelled: Callable[[], bool] = _never  # asked while `open` waits for the server


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why a transport cannot read a disk, and what would change that."""

    code: str  # stable, `transport.` and words with dashes; of a failed `open` the error's code
    text: str
    next_step: str


class Transport(Protocol):
    @property
    def name(self) -> str:
        """Stable, words with dashes: `hot-add`, `vddk`, `datastore-https`, `nfc-lease`."""
        ...

    def refusal(self, request: DiskRequest) -> Refusal | None:
        """Say whether it cannot work, from what is known without moving data; None: try `open`."""
        ...

    def open(self, request: DiskRequest) -> DiskReader:
        """Make the disk readable, and prove it: size checked, first bytes read where that is cheap.

        Raises:
            VsphereError: it does not work; nothing is left behind at the server.
        """
        ...


def check_range(offset: int, length: int, size_bytes: int) -> None:
    """Raises OutOfDiskError unless [offset, offset + length) lies inside the disk."""
    if offset < 0 or length < 0 or offset + length > size_bytes:
        raise OutOfDiskError(
            f"[{offset}, {offset + length}) lies outside a disk of {size_bytes} bytes"
        )


def check_plan(planned: Sequence[tuple[int, int]], size_bytes: int) -> None:
    """Raises OutOfDiskError unless the plan is sorted, disjoint and inside the disk."""
    end = 0
    for offset, length in planned:
        if offset < end or length <= 0 or offset + length > size_bytes:
            raise OutOfDiskError(
                f"planned read of {length} bytes at {offset}, after {end}, of {size_bytes}"
            )
        end = offset + length
