"""Quarantine: what a check found damaged, as sealed notes in the repository itself.

A note stands for the damaged records of one pack (or for chunks that are missing altogether). It
names digests, places, reasons and the recovery points that need them. While a note stands, its
places stay out of the index, also out of one that is rebuilt; so deduplication misses, and the
next backup that produces the same chunk stores it anew. A note whose digests are all found again
is *settled*: it affects nobody, and goes when garbage collection has removed the damaged pack.

Thread model: any thread, any process; notes are immutable.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from appliance.repository.blob_store.contract import BlobNotFoundError, BlobStore
from appliance.repository.document import DocumentCodec
from appliance.repository.errors import CorruptError
from appliance.repository.format import DOCUMENT_LIMIT_BYTES, QUARANTINE
from appliance.repository.index import ChunkIndex
from appliance.repository.manifest import Manifest

_RUN_TIME = "%Y%m%dT%H%M%SZ%z"
_Hex32 = Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
_Hex64 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DamagedRecord(_Strict):
    digest_hex: _Hex64
    offset: int | None = None  # in the pack; None: missing altogether
    reason: str = Field(max_length=500)

    @property
    def digest(self) -> bytes:
        return bytes.fromhex(self.digest_hex)


class AffectedDisk(_Strict):
    """Where the damage lies in a disk: bytes. Extents beyond the listed ones are only counted."""

    point_id: str
    vm: str
    disk: int
    extents: tuple[tuple[int, int], ...]  # (offset, length)
    more_extents: int = 0


class QuarantineNote(_Strict):
    version: int = Field(default=1, ge=1, le=1)
    check_id: str
    listed_at: AwareDatetime  # when the check listed the recovery points
    found_at: AwareDatetime
    pack_id_hex: _Hex32 | None
    records: tuple[DamagedRecord, ...]
    affected: tuple[AffectedDisk, ...]

    @property
    def name(self) -> str:
        return f"{QUARANTINE}/{self.check_id}-{self.pack_id_hex or 'missing'}.note"


@dataclass(frozen=True, slots=True, kw_only=True)
class StandingNote:
    name: str
    note: QuarantineNote | None  # None: the note itself is damaged
    missing: tuple[bytes, ...]  # digests that are not found again

    @property
    def pack_id(self) -> bytes | None:
        stem = self.name.rpartition("-")[2].removesuffix(".note")
        return None if stem == "missing" else bytes.fromhex(stem)


class Quarantine:
    def __init__(self, store: BlobStore, codec: DocumentCodec, index: ChunkIndex) -> None:
        self._store = store
        self._codec = codec
        self._index = index
        self._read: dict[str, QuarantineNote] = {}

    def add(self, note: QuarantineNote) -> None:
        """Make the note durable. Raises StorageFullError, StorageError."""
        self._store.put(note.name, self._codec.encode(note.name, note.model_dump_json().encode()))

    def standing(self) -> list[StandingNote]:
        """All notes; for a damaged one, everything in quarantine counts as missing."""
        return [self._standing(name, note) for name, note in self._notes()]

    def places(self) -> set[tuple[bytes, bytes]]:
        """Return (digest, pack id) of the records that must stay out of the index."""
        return {
            (record.digest, bytes.fromhex(note.pack_id_hex))
            for _, note in self._notes()
            if note is not None and note.pack_id_hex is not None
            for record in note.records
        }

    def affects(self, manifest: Manifest) -> bool:
        """Whether `manifest` may need what is damaged and not found again.

        A point whose run was at work while the check was is on no list; it counts as affected.
        """
        return any(
            standing.missing and (standing.note is None or _needs(standing.note, manifest))
            for standing in self.standing()
        )

    def remove(self, standing: StandingNote) -> None:
        self._store.delete(standing.name)
        self._read.pop(standing.name, None)

    def _standing(self, name: str, note: QuarantineNote | None) -> StandingNote:
        if note is None:
            return StandingNote(name=name, note=None, missing=tuple(self._index.quarantined()))
        digests = [record.digest for record in note.records]
        found = self._index.find_many(digests)
        missing = tuple(  # until the index was told, the damaged place is still found
            digest
            for digest in digests
            if digest not in found or found[digest].pack_id.hex() == note.pack_id_hex
        )
        return StandingNote(name=name, note=note, missing=missing)

    def _notes(self) -> Iterator[tuple[str, QuarantineNote | None]]:
        for blob in self._store.list(QUARANTINE):
            note = self._read.get(blob.name)
            if note is None:
                try:
                    raw = self._store.get(blob.name, limit_bytes=DOCUMENT_LIMIT_BYTES)
                    text = self._codec.decode(blob.name, raw)
                    note = self._read[blob.name] = QuarantineNote.model_validate_json(text)
                except BlobNotFoundError:
                    continue
                except (CorruptError, ValueError):
                    note = None
            yield blob.name, note


def _needs(note: QuarantineNote, manifest: Manifest) -> bool:
    if any(disk.point_id == manifest.point_id for disk in note.affected):
        return True
    run_started_at = datetime.strptime(manifest.run_id.partition("-")[0] + "+0000", _RUN_TIME)
    return run_started_at <= note.found_at and manifest.committed_at >= note.listed_at
