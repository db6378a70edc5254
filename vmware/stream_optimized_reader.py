"""Read a streamOptimized VMDK in one pass, as it comes from the network.

Data path: the NFC lease transport pulls grains from the response of a host; they stay compressed
until a reader asks, so that several threads can inflate at once.

Invariants: grains ascend and do not overlap; memory is bounded by one grain; a stream that ends
before its end-of-stream marker is an error, never a disk with zeros at its end.
Thread model: one thread at a time.
Source: VMware Virtual Disk Format 5.0 ("Stream-Optimized Compressed Sparse Extents").
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from vmware.errors import TransportError
from vmware.stream_optimized_format import (
    GRAIN_MARKER,
    TABLE_ENTRIES,
    Header,
    MarkerKind,
    compressed_limit,
    inflate,
    parse_header,
    unpack_marker,
)
from vmware.vmdk_descriptor import SECTOR_BYTES, VmdkError

_SKIP_BYTES = 64 << 10
_TABLE_SECTORS = TABLE_ENTRIES * 4 // SECTOR_BYTES
_GRAIN_HEAD_BYTES = GRAIN_MARKER.size


@dataclass(frozen=True, slots=True)
class Grain:
    """A stretch of the disk that is in the stream; bytes."""

    offset: int
    length: int  # of the disk: a grain, or less at the end of the disk
    grain_bytes: int
    compressed: bytes

    @property
    def end(self) -> int:
        return self.offset + self.length

    def inflate(self) -> bytes:
        """The `length` bytes of the disk. Releases the GIL.

        Raises:
            VmdkError: damaged.
        """
        raw = inflate(self.compressed, self.grain_bytes)
        if len(raw) not in (self.length, self.grain_bytes):
            raise VmdkError(f"a grain of {len(raw)} bytes at {self.offset} of a VMDK stream")
        return raw if len(raw) == self.length else raw[: self.length]


class StreamOptimizedReader:
    """Parses the header when made.

    Args:
        read: returns the next bytes of the stream, as many as asked for and fewer only at its end.

    Raises:
        VmdkError: not a streamOptimized VMDK.
        TransportError: the stream ended early.
    """

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read
        self._at = 0  # bytes of the stream that were read
        self.header: Header = parse_header(self._exactly(SECTOR_BYTES))
        self._skip((self.header.overhead - 1) * SECTOR_BYTES)

    @property
    def capacity_bytes(self) -> int:
        return self.header.capacity_bytes

    @property
    def stream_bytes(self) -> int:
        return self._at

    def grains(self) -> Iterator[Grain]:
        """Yield what is in the stream, ascending; what is between reads as zeros.

        Ends after the end-of-stream marker.

        Raises:
            VmdkError: malformed, descending, or outside the disk.
            TransportError: the stream ended early.
        """
        header = self.header
        limit = compressed_limit(header.grain_bytes)
        end = 0  # first sector of the disk that may follow
        while True:
            sector = self._exactly(SECTOR_BYTES)
            number, size, kind = unpack_marker(sector)
            if not size:
                if kind == MarkerKind.END_OF_STREAM:
                    return
                self._skip_metadata(kind, number)
                continue
            if number < end or number >= header.capacity or number % header.grain:
                raise VmdkError(f"a grain for sector {number} after {end} of {header.capacity}")
            if size > limit:
                raise VmdkError(f"a grain of {size} compressed bytes for sector {number}")
            compressed = sector[_GRAIN_HEAD_BYTES : _GRAIN_HEAD_BYTES + size]
            padded = -(-(_GRAIN_HEAD_BYTES + size) // SECTOR_BYTES) * SECTOR_BYTES
            if padded > SECTOR_BYTES:
                rest = self._exactly(padded - SECTOR_BYTES)
                compressed += rest[: size - len(compressed)]
            end = number + header.grain
            offset = number * SECTOR_BYTES
            length = min(header.grain_bytes, header.capacity_bytes - offset)
            yield Grain(offset, length, header.grain_bytes, compressed)

    def _skip_metadata(self, kind: int, sectors: int) -> None:
        header = self.header
        tables = -(-header.capacity // (header.grain * TABLE_ENTRIES))
        most: dict[int, int] = {
            MarkerKind.GRAIN_TABLE: _TABLE_SECTORS,
            MarkerKind.GRAIN_DIRECTORY: -(-tables * 4 // SECTOR_BYTES),
            MarkerKind.FOOTER: 1,
        }
        if sectors > most.get(kind, -1):
            raise VmdkError(f"a marker of kind {kind} with {sectors} sectors in a VMDK stream")
        self._skip(sectors * SECTOR_BYTES)

    def _skip(self, length: int) -> None:
        while length:
            step = min(length, _SKIP_BYTES)
            self._exactly(step)
            length -= step

    def _exactly(self, length: int) -> bytes:
        data = self._read(length)
        self._at += len(data)
        if len(data) != length:
            raise TransportError(f"the disk stream ended after {self._at} bytes, before its end")
        return data
