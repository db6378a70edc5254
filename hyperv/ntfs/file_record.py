"""One record of the master file table: attributes, runs, and the sectors' guard words.

    raw record -> FileRecord (guard words taken out) -> attributes -> runs -> raw record again

Every offset and length comes from the volume and is checked against the record before use.
Thread model: a record belongs to one thread.
Source: the NTFS documentation of the Linux-NTFS project: file record, attribute header, data runs,
$FILE_NAME; checked against what mkntfs and ntfs-3g 2022.10.3 write.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from hyperv.ntfs.errors import NtfsError

# magic, offset and count of guard words, log number, sequence, links, first attribute, flags,
# bytes used, bytes allocated
_HEADER = struct.Struct("<4sHHQHHHHII")
assert _HEADER.size == 32
# kind, bytes, non-resident, name length, name offset, flags, instance
_ATTRIBUTE = struct.Struct("<IIBBHHH")
assert _ATTRIBUTE.size == 16
_RESIDENT = struct.Struct("<IH")  # bytes and offset of the value; behind the attribute's header
# first and last cluster, offset of runs, compression unit, reserved, allocated, data, initialised
_NON_RESIDENT = struct.Struct("<QQHHIQQQ")
assert _NON_RESIDENT.size == 48
_INITIALISED_AT = _ATTRIBUTE.size + 40
_END = 0xFFFFFFFF
_GUARDED_BYTES = 512
_RUNS_MOST = 1 << 16

ATTRIBUTE_LIST, FILE_NAME, DATA, INDEX_ALLOCATION = 0x20, 0x30, 0x80, 0xA0
NOT_PLAIN = 0x0001 | 0x4000 | 0x8000  # compressed, encrypted, sparse
IN_USE = 0x0001


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Clusters of a file that lie in one piece in the volume."""

    first_in_file: int
    first_in_volume: int
    clusters: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribute:
    kind: int
    offset: int  # in the record
    length: int
    name_length: int
    flags: int
    resident: bool


class FileRecord:
    def __init__(self, raw: bytes, magic: bytes = b"FILE") -> None:
        """Also of index blocks, which are guarded alike. Raises NtfsError: it is torn or none."""
        self.content = bytearray(raw)
        if len(raw) < 48 or raw[:4] != magic:
            raise NtfsError(f"no {magic.decode()} record where one should be")
        guard_offset, guard_count = struct.unpack_from("<HH", raw, 4)
        self._sectors = guard_count - 1
        guards_end = guard_offset + 2 * guard_count
        if self._sectors * _GUARDED_BYTES != len(raw) or guards_end > _GUARDED_BYTES - 2:
            raise NtfsError(f"a record of {len(raw)} bytes with {guard_count} guard words")
        self._guard = raw[guard_offset : guard_offset + 2]
        self._guard_offset = guard_offset
        for sector in range(self._sectors):
            at = (sector + 1) * _GUARDED_BYTES - 2
            if raw[at : at + 2] != self._guard:
                raise NtfsError(f"a record is torn at its sector {sector}")
            kept_at = guard_offset + 2 * (sector + 1)
            self.content[at : at + 2] = raw[kept_at : kept_at + 2]

    def encoded(self) -> bytes:
        """The record as it stands in the volume."""
        raw = bytearray(self.content)
        for sector in range(self._sectors):
            at = (sector + 1) * _GUARDED_BYTES - 2
            kept_at = self._guard_offset + 2 * (sector + 1)
            raw[kept_at : kept_at + 2] = self.content[at : at + 2]
            raw[at : at + 2] = self._guard
        return bytes(raw)

    @property
    def in_use(self) -> bool:
        return bool(_HEADER.unpack_from(self.content)[7] & IN_USE)

    def attributes(self) -> Iterator[Attribute]:
        """Raises NtfsError: they do not fit into the record."""
        offset, used = _HEADER.unpack_from(self.content)[6], _HEADER.unpack_from(self.content)[8]
        used = min(used, len(self.content))
        while offset + 4 <= used:
            (kind,) = struct.unpack_from("<I", self.content, offset)
            if kind == _END:
                return
            if offset + _ATTRIBUTE.size > used:
                break
            _, length, non_resident, name_length, _, flags, _ = _ATTRIBUTE.unpack_from(
                self.content, offset
            )
            if length < 24 or offset + length > used:
                break
            yield Attribute(
                kind=kind,
                offset=offset,
                length=length,
                name_length=name_length,
                flags=flags,
                resident=not non_resident,
            )
            offset += length
        raise NtfsError("the attributes of a record run over its end")

    def value(self, attribute: Attribute) -> tuple[int, int]:
        """Return where in the record the value of a resident attribute stands, and its bytes."""
        length, offset = _RESIDENT.unpack_from(self.content, attribute.offset + _ATTRIBUTE.size)
        if not attribute.resident or offset + length > attribute.length:
            raise NtfsError("the value of an attribute runs over its end")
        return attribute.offset + offset, length

    def data_bytes(self, attribute: Attribute) -> int:
        """Of a non-resident attribute."""
        return int(self._non_resident(attribute)[6])

    def runs(self, attribute: Attribute) -> list[Run]:
        """Where a non-resident attribute lies, in order of the file.

        Raises:
            NtfsError: it has holes, or its runs cannot be read.
        """
        fields = self._non_resident(attribute)
        first, last, runs_at = fields[0], fields[1], fields[2]
        if first:
            raise NtfsError("a file whose description goes on in other records")
        end = attribute.offset + attribute.length
        runs = decode_runs(bytes(self.content[attribute.offset + runs_at : end]))
        if sum(run.clusters for run in runs) != last + 1:
            raise NtfsError("the runs of a file do not cover it")
        return runs

    def set_all_initialised(self, attribute: Attribute) -> None:
        """Say that every byte of the data was written, so that readers do not take it for zeros."""
        struct.pack_into(
            "<Q", self.content, attribute.offset + _INITIALISED_AT, self.data_bytes(attribute)
        )

    def _non_resident(self, attribute: Attribute) -> tuple[int, ...]:
        if attribute.resident or attribute.length < _ATTRIBUTE.size + _NON_RESIDENT.size:
            raise NtfsError("an attribute that lies in its record has no runs")
        return _NON_RESIDENT.unpack_from(self.content, attribute.offset + _ATTRIBUTE.size)


def decode_runs(raw: bytes) -> list[Run]:
    """Raises NtfsError: a hole, or runs without an end."""
    runs: list[Run] = []
    position = in_file = in_volume = 0
    while position < len(raw) and raw[position]:
        length_bytes, offset_bytes = raw[position] & 15, raw[position] >> 4
        stop = position + 1 + length_bytes + offset_bytes
        if not length_bytes or length_bytes > 8 or offset_bytes > 8 or stop > len(raw):
            break
        if not offset_bytes:
            raise NtfsError("a file with holes")
        middle = position + 1 + length_bytes
        clusters = int.from_bytes(raw[position + 1 : middle], "little")
        in_volume += int.from_bytes(raw[middle:stop], "little", signed=True)
        if not clusters or in_volume < 0 or len(runs) == _RUNS_MOST:
            break
        runs.append(Run(first_in_file=in_file, first_in_volume=in_volume, clusters=clusters))
        in_file += clusters
        position = stop
    else:
        if position < len(raw):
            return runs
    raise NtfsError("the runs of a file cannot be read")
