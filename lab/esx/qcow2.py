"""The container of the lab's delta disks, a qcow2 image: made empty, and read without QEMU.

Only what QEMU 7.2 writes into an image this module made: version 3, 64 KiB clusters, no
compression, no encryption, no internal snapshots. The chain is never recorded in the image: who
opens it says what lies below. Source: QEMU docs/interop/qcow2.txt.
Thread model: a reader may be used by any thread; it must not outlive a writer's next change.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from lab.esx.errors import FileFaultError
from lab.esx.files import Files

CLUSTER_BYTES = 64 * 1024
_MAGIC = 0x514649FB
_HEADER = struct.Struct(">IIQIIQIIQQIIQQQQII")
assert _HEADER.size == 104
_ENTRIES = CLUSTER_BYTES // 8
_OFFSET_MASK = 0x00FF_FFFF_FFFF_FE00
_COMPRESSED = 1 << 62
_ZERO = 1
_L1_BYTES_MAX = 32 << 20


def empty_image(capacity_bytes: int) -> bytes:
    """An image without any data: header, refcount table, one refcount block, L1 table."""
    l1_entries = -(-capacity_bytes // (CLUSTER_BYTES * _ENTRIES))
    l1_clusters = -(-l1_entries * 8 // CLUSTER_BYTES)
    used = 3 + l1_clusters
    if used > CLUSTER_BYTES // 2:
        raise FileFaultError(f"a delta of {capacity_bytes} bytes is too large")
    header = _HEADER.pack(
        *(_MAGIC, 3, 0, 0, 16, capacity_bytes, 0, l1_entries),
        *(3 * CLUSTER_BYTES, CLUSTER_BYTES, 1, 0, 0),
        *(0, 0, 0, 4, _HEADER.size),
    )
    table = struct.pack(">Q", 2 * CLUSTER_BYTES)
    counts = struct.pack(">H", 1) * used
    parts = (header, table, counts, bytes(l1_clusters * CLUSTER_BYTES))
    return b"".join(part.ljust(CLUSTER_BYTES, b"\0") for part in parts)


class Qcow2Image:
    """The tables are read at construction and at use; data clusters are never cached."""

    def __init__(self, files: Files, path: str) -> None:
        """Raises FileFaultError when the file is not such an image."""
        self._files = files
        self._path = path
        raw = files.read_at(path, 0, _HEADER.size)
        if len(raw) < _HEADER.size:
            raise FileFaultError(f"{path} is no delta disk")
        fields = _HEADER.unpack(raw)
        magic, version, cluster_bits, self.size_bytes = fields[0], fields[1], fields[4], fields[5]
        l1_entries, l1_offset = fields[7], fields[8]
        if (magic, version, cluster_bits) != (_MAGIC, 3, 16) or l1_entries * 8 > _L1_BYTES_MAX:
            raise FileFaultError(f"{path} is no delta disk")
        l1 = files.read_at(path, l1_offset, l1_entries * 8)
        if len(l1) != l1_entries * 8:
            raise FileFaultError(f"{path} ends inside its tables")
        self._l1 = struct.unpack(f">{l1_entries}Q", l1)
        self._l2: dict[int, tuple[int, ...]] = {}

    def allocated(self) -> Iterator[tuple[int, int]]:
        """(offset, length) of every cluster that hides the parent's, ascending."""
        for index, pointer in enumerate(self._l1):
            if not pointer & _OFFSET_MASK:
                continue
            for place, entry in enumerate(self._table(index)):
                offset = (index * _ENTRIES + place) * CLUSTER_BYTES
                if entry and offset < self.size_bytes:
                    yield offset, min(CLUSTER_BYTES, self.size_bytes - offset)

    def read_cluster(self, offset: int) -> bytes | None:
        """The cluster at an aligned offset; None when the parent's shows through."""
        number = offset // CLUSTER_BYTES
        index, place = divmod(number, _ENTRIES)
        if index >= len(self._l1) or not self._l1[index] & _OFFSET_MASK:
            return None
        entry = self._table(index)[place]
        if not entry:
            return None
        if entry & _COMPRESSED:
            raise FileFaultError(f"{self._path} is compressed")
        if entry & _ZERO:
            return bytes(CLUSTER_BYTES)
        data = self._files.read_at(self._path, entry & _OFFSET_MASK, CLUSTER_BYTES)
        return data.ljust(CLUSTER_BYTES, b"\0")

    def _table(self, index: int) -> tuple[int, ...]:
        if index not in self._l2:
            data = self._files.read_at(
                self._path, self._l1[index] & _OFFSET_MASK, CLUSTER_BYTES
            ).ljust(CLUSTER_BYTES, b"\0")
            self._l2[index] = struct.unpack(f">{_ENTRIES}Q", data)
        return self._l2[index]
