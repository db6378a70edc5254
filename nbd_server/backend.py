"""What a served disk must offer, and the name under which it is served.

Thread model: `try_read` is called on the event loop and must not block. Everything else is called
on worker threads, several at once, also for the same range. All connections of an export share
one backend without a cache in between, which makes the CAN_MULTI_CONN promise true: after a
flush, every write that was acknowledged on any connection is durable and seen by all.

A range handed to a backend always lies inside the disk. Errors: raise BackendError to choose the
client's error number; anything else is logged and becomes EIO.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from nbd_server.protocol import MAX_NAME_BYTES

Buffer = bytes | bytearray | memoryview


class Backend(Protocol):
    @property
    def size_bytes(self) -> int:
        """Must not change while the disk is served."""
        ...

    @property
    def read_only(self) -> bool: ...

    @property
    def preferred_block_bytes(self) -> int:
        """A power of two from 512 up: requests aligned to it are the cheapest."""
        ...

    @property
    def fast_zero(self) -> bool:
        """Whether `zero` without `allocate` is faster than writing zeros, whatever the length."""
        ...

    @property
    def reads_near(self) -> bool:
        """Whether `read_near` is worth a call."""
        ...

    def try_read(self, offset: int, length: int) -> bytes | memoryview | None:
        """Return what `read` would, or None when that could block. Never blocks.

        A returned view must not change afterwards: it may wait for a slow client.
        """
        ...

    def read(self, offset: int, length: int) -> bytes | memoryview:
        """Return exactly `length` bytes (at most MAX_PAYLOAD_BYTES); blocks."""
        ...

    def read_near(self, ranges: Sequence[tuple[int, int]]) -> Sequence[bytes | memoryview | None]:
        """Return what `read` would for each (offset, length) that needs no wait for storage.

        None stands for the others. Called where `reads_near`, on as many threads as there are
        processors: what takes processor time, such as decompression, is done fastest so.
        """
        ...

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write all of `data`, visible to every later call; durable after `flush`."""
        ...

    def zero(self, offset: int, length: int, *, allocate: bool) -> None:
        """Make up to 4 GiB read as zeros. `allocate`: leave no hole, as far as there are any."""
        ...

    def trim(self, offset: int, length: int) -> None:
        """Be told that up to 4 GiB are of no interest any more; may do nothing."""
        ...

    def flush(self) -> None:
        """Return once every write that had returned before the call is durable."""
        ...

    def extents(self, offset: int, length: int) -> Sequence[tuple[int, bool]]:
        """Describe the range from its start: (length, reads as zeros from a hole), in order.

        May stop short of the end, but says something about the first byte.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    name: str
    backend: Backend
    description: str = ""

    def __post_init__(self) -> None:
        if not self.name or len(self.name.encode()) > MAX_NAME_BYTES:
            raise ValueError(f"export name of {len(self.name)} characters")
        if len(self.description.encode()) > MAX_NAME_BYTES:
            raise ValueError(f"description of export {self.name!r} is too long")


Exports = Mapping[bytes, Export]
"""By UTF-8 name, in the order of LIST. The first one also answers to the empty name."""


def export_table(exports: Sequence[Export]) -> Exports:
    """Raises ValueError for none at all or for two of the same name."""
    table = {export.name.encode(): export for export in exports}
    if not table or len(table) != len(exports):
        raise ValueError("exports must be at least one, with different names")
    return table


def find_export(exports: Exports, name: bytes) -> Export | None:
    if not name:
        return next(iter(exports.values()))
    return exports.get(name)
