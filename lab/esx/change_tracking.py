"""Changed block tracking of one disk: epochs of truly written blocks, kept in `NAME-ctk.vmdk`.

An epoch is what the guest wrote between two snapshots; closing one gives its number, which is the
counter of the changeId that the snapshot shows: `52 xx … xx/N`. A query unites the epochs after
its changeId up to the snapshot's own. Starting over makes a new identifier, and every changeId of
the old one is refused from then on, as a host does after an unclean power loss.

`open` marks a file whose blocks since the last close are only in QEMU's memory; finding it set
when a disk is opened means exactly that loss. `misses_deltas` marks tracking that was enabled
while snapshots existed: what was written into deltas is forgotten with them, silently, as since
vSphere 6.5. Source: design notes on vSphere, section 2.

Invariants: areas are sorted, disjoint and whole blocks (the last one ends at the capacity); the
file is replaced in one rename. Thread model: values and one writer, the VM that has the disk.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from lab.esx.areas import Area, merged, rounded
from lab.esx.errors import FileFaultError, HostError

EPOCHS_MAX = 512
CTK_BYTES_MAX = 64 << 20
_BLOCK_BYTES = 64 * 1024
_SMALL_DISK_BYTES = 128 << 30
_CHANGE_ID = re.compile(r"(52(?: [0-9a-f]{2}){7}-[0-9a-f]{2}(?: [0-9a-f]{2}){7})/(\d{1,9})")


class InvalidArgumentError(HostError):
    """A parameter is not one this method takes; field `property` names it."""

    fault = "InvalidArgument"


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    number: int
    areas: tuple[Area, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeId:
    tracking_id: str
    number: int

    def __str__(self) -> str:
        return f"{self.tracking_id}/{self.number}"

    @classmethod
    def parse(cls, text: str) -> ChangeId:
        match = _CHANGE_ID.fullmatch(text)
        if match is None:
            raise InvalidArgumentError(f"not a changeId: {text!r}", invalidProperty="changeId")
        return cls(tracking_id=match[1], number=int(match[2]))


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeTracking:
    """`pending` is what was written since the last epoch closed and is not in QEMU's memory."""

    tracking_id: str
    capacity_bytes: int
    epochs: tuple[Epoch, ...] = ()
    pending: tuple[Area, ...] = ()
    open: bool = False
    misses_deltas: bool = False
    last_number: int = field(default=0)

    @property
    def block_bytes(self) -> int:
        return block_bytes(self.capacity_bytes)

    @property
    def change_id(self) -> ChangeId:
        """Of the state when the last epoch closed."""
        return ChangeId(tracking_id=self.tracking_id, number=self.last_number)

    def opened(self) -> ChangeTracking:
        return replace(self, open=True)

    def written(self, areas: Iterable[Area]) -> ChangeTracking:
        """What QEMU's bitmap held is now in this file."""
        whole = rounded(areas, self.block_bytes, self.capacity_bytes)
        return replace(self, pending=tuple(merged([*self.pending, *whole])))

    def closed_epoch(self, areas: Iterable[Area]) -> ChangeTracking:
        """A snapshot is taken: these areas and what is pending become the next epoch."""
        closing = self.written(areas)
        epoch = Epoch(number=self.last_number + 1, areas=closing.pending)
        return replace(
            closing,
            epochs=(*self.epochs, epoch)[-EPOCHS_MAX:],
            pending=(),
            last_number=epoch.number,
        )

    def delta_removed(self) -> ChangeTracking:
        """A snapshot is gone; bad tracking forgets what was written into its delta."""
        return replace(self, pending=()) if self.misses_deltas else self

    def changed(self, since: ChangeId, until: ChangeId | None) -> list[Area]:
        """Areas written after `since`, up to a snapshot's id, or to now for None.

        Raises:
            FileFaultError: an id is of other tracking, or older than what is kept.
        """
        last = self.last_number if until is None else until.number
        for given in (since, *([until] if until else [])):
            if given.tracking_id != self.tracking_id or given.number > self.last_number:
                raise FileFaultError("the changeId is not of the present change tracking")
        kept_from = self.epochs[0].number if self.epochs else self.last_number + 1
        if since.number < kept_from - 1 or since.number > last:
            raise FileFaultError("the changeId is older than the change tracking")
        areas = [
            area
            for epoch in self.epochs
            if since.number < epoch.number <= last
            for area in epoch.areas
        ]
        return merged([*areas, *(self.pending if until is None else ())])

    def encode(self) -> bytes:
        document = {
            "format": "holdfast-lab-ctk",
            "version": 1,
            "tracking_id": self.tracking_id,
            "capacity_bytes": self.capacity_bytes,
            "epochs": [[epoch.number, *map(list, epoch.areas)] for epoch in self.epochs],
            "pending": [list(area) for area in self.pending],
            "open": self.open,
            "misses_deltas": self.misses_deltas,
            "last_number": self.last_number,
        }
        return json.dumps(document, separators=(",", ":")).encode()


def new_tracking(capacity_bytes: int, *, misses_deltas: bool = False) -> ChangeTracking:
    digits = secrets.token_hex(15)
    pairs = ["52", *(digits[place : place + 2] for place in range(0, 30, 2))]
    tracking_id = f"{' '.join(pairs[:8])}-{' '.join(pairs[8:])}"
    return ChangeTracking(
        tracking_id=tracking_id, capacity_bytes=capacity_bytes, misses_deltas=misses_deltas
    )


def decode_tracking(data: bytes) -> ChangeTracking:
    """Raises FileFaultError when the bytes are not what `encode` wrote."""
    try:
        document = json.loads(data)
        if (document["format"], document["version"]) != ("holdfast-lab-ctk", 1):
            raise ValueError(document["format"])
        return ChangeTracking(
            tracking_id=str(document["tracking_id"]),
            capacity_bytes=int(document["capacity_bytes"]),
            epochs=tuple(
                Epoch(number=int(number), areas=_areas(areas))
                for number, *areas in document["epochs"]
            ),
            pending=_areas(document["pending"]),
            open=bool(document["open"]),
            misses_deltas=bool(document["misses_deltas"]),
            last_number=int(document["last_number"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise FileFaultError("the change tracking file is not readable") from error


def block_bytes(capacity_bytes: int) -> int:
    """64 KiB up to 128 GiB, doubled with each doubling of the disk."""
    size = _BLOCK_BYTES
    while capacity_bytes > _SMALL_DISK_BYTES * (size // _BLOCK_BYTES):
        size *= 2
    return size


def _areas(items: Iterable[tuple[int, int]]) -> tuple[Area, ...]:
    return tuple((int(start), int(length)) for start, length in items)
