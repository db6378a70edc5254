"""The header in force of the two in a VHDX file ([MS-VHDX] 2.2.2)."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from hyperv.vhdx.errors import (
    CorruptDiskFileError,
    NotADiskFileError,
    UnsupportedDiskFileError,
)
from hyperv.vhdx.source import ByteSource, read_exactly
from hyperv.vhdx.structures import (
    FILE_SIGNATURE,
    HEADER,
    HEADER_BYTES,
    HEADER_OFFSETS,
    HEADER_SECTION_BYTES,
    HEADER_SIGNATURE,
    MIB,
    checksum,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    place: int  # where in the file it stands: one of `HEADER_OFFSETS`
    sequence: int
    file_write_id: UUID
    data_write_id: UUID
    log_id: UUID | None  # None: the log is empty
    log_offset: int
    log_bytes: int


def read_header(source: ByteSource) -> Header:
    """Return the valid header with the higher sequence number.

    Raises:
        NotADiskFileError: the file does not begin as a VHDX file.
        CorruptDiskFileError: no header is valid, or two that differ claim to be the newest.
        UnsupportedDiskFileError: a version other than 1.
    """
    if source.read_at(0, len(FILE_SIGNATURE)) != FILE_SIGNATURE:
        raise NotADiskFileError("it does not begin with the identifier of a VHDX file")
    section = read_exactly(source, 0, HEADER_SECTION_BYTES, "header section")
    valid = []
    for at in HEADER_OFFSETS:
        raw = section[at : at + HEADER_BYTES]
        if raw[:4] == HEADER_SIGNATURE and int.from_bytes(raw[4:8], "little") == checksum(raw):
            valid.append((at, raw))
    if not valid:
        raise CorruptDiskFileError("header", "neither copy has its checksum")
    place, newest = max(valid, key=lambda found: _sequence(found[1]))
    if any(_sequence(raw) == _sequence(newest) and raw != newest for _, raw in valid):
        raise CorruptDiskFileError("header", f"both copies have the number {_sequence(newest)}")
    return _parsed(place, newest)


def _sequence(raw: bytes) -> int:
    return int.from_bytes(raw[8:16], "little")


def _parsed(place: int, raw: bytes) -> Header:
    (_, _, sequence, file_write, data_write, log_id, log_version, version, log_bytes,
     log_offset) = HEADER.unpack_from(raw)  # fmt: skip
    if version != 1:
        raise UnsupportedDiskFileError(f"VHDX of version {version}")
    has_log = any(log_id)
    if has_log and log_version != 0:
        raise UnsupportedDiskFileError(f"a log of version {log_version}")
    if log_offset % MIB or log_bytes % MIB or (log_bytes and not log_offset):
        raise CorruptDiskFileError("header", f"log of {log_bytes} bytes at {log_offset}")
    return Header(
        place=place,
        sequence=sequence,
        file_write_id=UUID(bytes_le=file_write),
        data_write_id=UUID(bytes_le=data_write),
        log_id=UUID(bytes_le=log_id) if has_log else None,
        log_offset=log_offset,
        log_bytes=log_bytes,
    )
