"""What a broken run had stored, so that the next one need not read it again.

Data path: `stored_segments` notes every segment that was looked at; now and then the run makes what
it has written durable, and the noted leaves are appended to a journal in the state folder. A run
that breaks (kill -9 included) leaves the journal; the next run of the VM asks the source what has
changed since *that* run's snapshot, takes the journal's leaves for what has not, and reads the
rest. A committed run removes the journal.

Why this is sound: a leaf describes a segment as it was in the broken run's snapshot; the change
list since that snapshot (asked by its change id, with the same identity checks as for a recovery
point) names all that differs now. The journal is a hint about where content may be found, never
the only copy of a fact: each leaf and each chunk it lists is looked up (`ChunkIndex.known`) under
the new run's own session before it is used, so what garbage collection took is simply read again.

File: text lines `crc32c body`, crc32c over the body as 8 hex digits. First body: a JSON header
(format 1). The others: `disk segment leaf-digest-hex`. Reading stops at the first line that is
damaged or cut. A journal is replaced, never edited; at most 2**19 leaves (4 TiB of disk) are kept.

Thread model: `BrokenRunJournal` takes a lock; disks of one run share it. One run per VM writes it
(`live_runs`).
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Annotated

import google_crc32c
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from appliance.base.atomic import make_folders, replace_file, write_all
from appliance.base.errors import StorageError
from appliance.base.ids import RunId
from appliance.sources.frozen import DiskIdentity, FrozenVm, KnownDisk, KnownState

_FORMAT = 1
_MOST_LEAVES = 1 << 19
_MOST_HEADER_BYTES = 1 << 20
_MOST_LINE_BYTES = 128
_DIGEST_HEX = 64

_Text = Annotated[str, Field(max_length=4096)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Disk(_Strict):
    number: int = Field(ge=0, lt=256)
    label: _Text
    size_bytes: int = Field(ge=0)
    change_id: _Text | None
    uuid: _Text
    place: _Text


class _Header(_Strict):
    format: int = Field(ge=_FORMAT, le=_FORMAT)
    run_id: str = Field(pattern=r"^\d{8}T\d{6}Z-[0-9a-f]{12}$")
    vm: str = Field(min_length=1, max_length=255)
    instance: _Text
    frozen_at: AwareDatetime
    disks: tuple[_Disk, ...] = Field(max_length=256)


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokenRun:
    """A journal, read. `leaves`: disk number -> segment -> leaf digest."""

    state: KnownState
    frozen_at: datetime
    leaves: Mapping[int, Mapping[int, bytes]]

    def leaves_of(self, number: int) -> Mapping[int, bytes]:
        return self.leaves.get(number, {})


def journal_path(folder: Path, repository_id: bytes, vm: str) -> Path:
    """One journal per repository and VM; a name becomes a path only as its hash."""
    return folder / f"{hashlib.sha256(repository_id + vm.encode()).hexdigest()[:40]}.journal"


def read_broken_run(path: Path, vm: str) -> BrokenRun | None:
    """Return what the journal holds; None: there is none, or nothing of it can be used."""
    try:
        with path.open("rb") as file:
            header = _header(file.readline(_MOST_HEADER_BYTES))
            if header is None or header.vm != vm:
                return None
            leaves: dict[int, dict[int, bytes]] = {}
            for _ in range(_MOST_LEAVES):
                entry = _leaf(file.readline(_MOST_LINE_BYTES))
                if entry is None:
                    break
                number, segment, digest = entry
                leaves.setdefault(number, {})[segment] = digest
    except OSError:
        return None
    disks = tuple(
        KnownDisk(
            number=disk.number,
            label=disk.label,
            size_bytes=disk.size_bytes,
            change_id=disk.change_id,
            identity=DiskIdentity(uuid=disk.uuid, place=disk.place, change_id=disk.change_id),
        )
        for disk in header.disks
    )
    return BrokenRun(
        state=KnownState(run_id=header.run_id, instance=header.instance, disks=disks),
        frozen_at=header.frozen_at,
        leaves=leaves,
    )


def forget_broken_run(path: Path) -> None:
    path.unlink(missing_ok=True)


@dataclass(slots=True)
class BrokenRunJournal:
    """The journal of the run at hand, in case it breaks.

    Nothing is written before the first `keep`; the old journal stays until then.
    """

    path: Path
    run_id: RunId
    vm: FrozenVm
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _noted: list[bytes] = field(default_factory=list)
    _kept: int = 0
    _begun: bool = False

    def note(self, number: int, segment: int, digest: bytes) -> int:
        """Remember a leaf that may not be durable yet; return how many wait for `keep`."""
        with self._lock:
            self._noted.append(_line(f"{number} {segment} {digest.hex()}"))
            return len(self._noted)

    def take(self) -> list[bytes]:
        """Return what was noted since the last call; make it durable, then `keep` it."""
        with self._lock:
            noted, self._noted = self._noted, []
            return noted

    def keep(self, noted: Iterable[bytes]) -> None:
        """Append leaves that are durable in the repository by now.

        Raises: StorageError: the state folder cannot be written. The run may go on.
        """
        with self._lock:
            lines = list(noted)[: _MOST_LEAVES - self._kept]
            if not lines:
                return
            try:
                if self._begun:
                    _append(self.path, b"".join(lines))
                else:
                    make_folders(self.path.parent)
                    replace_file(self.path, b"".join([self._header(), *lines]))
                    self._begun = True
            except OSError as error:
                raise StorageError(f"{self.path}: {error.strerror}") from error
            self._kept += len(lines)

    def _header(self) -> bytes:
        vm = self.vm
        header = _Header(
            format=_FORMAT,
            run_id=self.run_id,
            vm=vm.name,
            instance=vm.instance,
            frozen_at=vm.created_at,
            disks=tuple(
                _Disk(
                    number=disk.number,
                    label=disk.label,
                    size_bytes=disk.reader.size_bytes,
                    change_id=disk.change_id,
                    uuid=disk.identity.uuid,
                    place=disk.identity.place,
                )
                for disk in vm.disks
                if disk.identity is not None and disk.change_id is not None
            ),
        )
        return _line(header.model_dump_json())


def _append(path: Path, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        write_all(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)


def _line(body: str) -> bytes:
    raw = body.encode()
    return b"%08x %s\n" % (google_crc32c.value(raw), raw)


def _body(line: bytes) -> bytes | None:
    """Return the body of a whole and undamaged line."""
    if len(line) < 10 or line[8:9] != b" " or not line.endswith(b"\n"):
        return None
    body = line[9:-1]
    return body if line[:8] == b"%08x" % google_crc32c.value(body) else None


def _header(line: bytes) -> _Header | None:
    body = _body(line)
    if body is None:
        return None
    try:
        return _Header.model_validate_json(body)
    except ValidationError:
        return None


def _leaf(line: bytes) -> tuple[int, int, bytes] | None:
    words = (_body(line) or b"").split(b" ")
    if len(words) != 3 or len(words[2]) != _DIGEST_HEX:
        return None
    try:
        return int(words[0]), int(words[1]), bytes.fromhex(words[2].decode())
    except ValueError:
        return None
