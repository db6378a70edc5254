"""The block-device contract where storage, exports and hypervisors meet.

`BlockReader` is what every disk looks like to read (a source image, a recovery point, an overlay);
`BlockDevice` adds writing. One conformance suite (`tests/contract/block_reader.py`) runs on every
implementation.

Thread model: every method may be called from several threads at once. Methods block on storage
unless they say otherwise, so an event loop calls only `try_read_at`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from appliance.base.errors import OutOfRangeError
from appliance.blocks.extents import MappedExtent


class BlockReader(Protocol):
    @property
    def size_bytes(self) -> int: ...

    def read_at(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes from byte `offset`; holes read as zeros.

        Raises:
            OutOfRangeError: the range does not lie inside the disk.
        """
        ...

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill the whole of `buffer` (writable, bytes) from byte `offset`; else as `read_at`."""
        ...

    def try_read_at(self, offset: int, length: int) -> bytes | memoryview | None:
        """Return what `read_at` would when it can be had at once, else None. Never blocks.

        "At once" means from memory, or from the page cache with bounded work (a few decoded
        chunks); a caller on an event loop hands a None to a worker thread. May return a view
        of an internal immutable buffer.
        """
        ...

    def map_extents(self, offset: int, length: int) -> list[MappedExtent]:
        """Describe [offset, offset + length): contiguous, in order, equal neighbours joined.

        DATA is always a legal answer. The list may stop short of the end of the range when the
        rest is costly to find, but covers at least its first byte.
        """
        ...

    def close(self) -> None:
        """Release what the reader holds; idempotent. Reads afterwards are not defined."""
        ...


@runtime_checkable
class NearReader(Protocol):
    """A reader whose reads cost processor time once its storage has answered."""

    def read_near_many(self, ranges: Sequence[tuple[int, int]]) -> list[bytes | memoryview | None]:
        """Return what `read_at` would for each (offset, length) that needs no wait for storage.

        None stands for the others. May take long, unlike `try_read_at`: for a thread of its own, of
        which there need be no more than processors.

        Raises: as `read_at`, for all of them.
        """
        ...


class CachingReader(BlockReader, NearReader, Protocol):
    """A reader with a cache that can be filled ahead of the reads."""

    def prefetch(self, offset: int, length: int) -> None:
        """Make a later read of the range cheap; what lies outside the disk is left out.

        Raises: as `read_at`.
        """
        ...


class BlockDevice(BlockReader, Protocol):
    """A disk that may be written. Offsets and lengths may be any number of bytes."""

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        """Write all of `data`; durable only after `flush`.

        Raises:
            OutOfRangeError: the range does not lie inside the disk.
            StorageFullError: no space for it; what was written before stays readable.
        """
        ...

    def zero_at(self, offset: int, length: int) -> None:
        """Make the range read as zeros; may free the space. Cheap for any length."""
        ...

    def flush(self) -> None:
        """Return once every write that had returned before this call is durable.

        Concurrent calls share one fsync.
        """
        ...


def check_range(offset: int, length: int, size_bytes: int) -> None:
    """Raises OutOfRangeError unless [offset, offset + length) lies inside the disk."""
    if offset < 0 or length < 0 or offset + length > size_bytes:
        raise OutOfRangeError(offset, length, size_bytes)
