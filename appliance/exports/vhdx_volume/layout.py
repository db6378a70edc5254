"""Which bytes of the volume are those of a recovery point's disk: `layout.json`, made once.

The layout never changes afterwards, whatever a host does with the files: should it delete one and
put another in its place, those clusters go on being stored in the disk's overlay. So a restart
shows the same bytes.

Invariants: pieces of disks lie inside the volume, do not overlap, and show each byte of a disk once
and in order. Thread model: immutable.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from appliance.base.atomic import replace_file
from appliance.base.errors import ApplianceError, StorageError, UsageError
from appliance.blocks.composed_device import ComposedDevice, Piece
from appliance.blocks.device import BlockDevice

VERSION = 1
_FILE = "layout.json"
_LIMIT_BYTES = 16 << 20
_PIECES_MOST = 1 << 16
_MOST_BYTES = 1 << 50
FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]{0,99}$")]


class VolumeDamagedError(ApplianceError):
    """The layout of a session's volume cannot be understood; the message names the file. What the
    guest wrote may still be in its overlays: keep the folder until that is settled."""

    code = "volume.damaged"


class LaidPiece(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    offset: int = Field(ge=0, lt=_MOST_BYTES)  # in the volume's disk
    disk_offset: int = Field(ge=0, lt=_MOST_BYTES)
    length: int = Field(gt=0, lt=_MOST_BYTES)


class LaidDisk(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int = Field(ge=0, lt=256)
    size_bytes: int = Field(gt=0, lt=_MOST_BYTES)
    file: FileName
    pieces: tuple[LaidPiece, ...] = Field(max_length=_PIECES_MOST)


class VolumeLayout(BaseModel):
    """`layout.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["holdfast-volume"] = "holdfast-volume"
    version: int = Field(default=VERSION, ge=1, le=VERSION)
    size_bytes: int = Field(gt=0, lt=_MOST_BYTES)
    disks: tuple[LaidDisk, ...]

    def compose(self, scratch: BlockDevice, devices: Mapping[int, BlockDevice]) -> ComposedDevice:
        """The volume's disk: `devices` where their bytes are shown, `scratch` everywhere else.

        Raises: UsageError: the layout contradicts itself, or these are not its disks.
        """
        shown: list[Piece] = []
        for disk in self.disks:
            device = devices.get(disk.number)
            if device is None or device.size_bytes != disk.size_bytes:
                raise UsageError(f"disk {disk.number} is not the one that the volume was made for")
            at = 0
            for piece in disk.pieces:
                if piece.disk_offset != at:
                    raise UsageError(f"disk {disk.number} is shown from byte {piece.disk_offset}")
                at += piece.length
                shown.append(
                    Piece(
                        offset=piece.offset,
                        length=piece.length,
                        device=device,
                        device_offset=piece.disk_offset,
                    )
                )
            if at != disk.size_bytes:
                raise UsageError(f"disk {disk.number} is shown up to byte {at}")
        composed = ComposedDevice(_filled(shown, scratch, self.size_bytes))
        if composed.size_bytes != self.size_bytes:
            raise UsageError(f"a disk is shown behind the end of the volume, {self.size_bytes}")
        return composed


def _filled(shown: Sequence[Piece], scratch: BlockDevice, size_bytes: int) -> list[Piece]:
    """The pieces in order, with those of `scratch` between them."""
    result: list[Piece] = []
    at = 0
    for piece in sorted(shown, key=lambda each: each.offset):
        if piece.offset > at:
            result.append(_of_scratch(scratch, at, piece.offset))
        result.append(piece)
        at = piece.offset + piece.length
    if at < size_bytes:
        result.append(_of_scratch(scratch, at, size_bytes))
    return result


def _of_scratch(scratch: BlockDevice, start: int, end: int) -> Piece:
    return Piece(offset=start, length=end - start, device=scratch, device_offset=start)


def write_layout(folder: Path, layout: VolumeLayout) -> None:
    """Durable on return. Raises StorageError."""
    try:
        replace_file(folder / _FILE, layout.model_dump_json().encode())
    except OSError as error:
        raise StorageError(f"{folder / _FILE}: {error.strerror}") from error


def read_layout(folder: Path) -> VolumeLayout | None:
    """None: no volume was finished there. Raises VolumeDamagedError, StorageError."""
    path = folder / _FILE
    try:
        with path.open("rb") as file:
            raw = file.read(_LIMIT_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}") from error
    if len(raw) > _LIMIT_BYTES:
        raise VolumeDamagedError(f"{path} is larger than it can be")
    try:
        return VolumeLayout.model_validate_json(raw)
    except ValidationError as error:
        raise VolumeDamagedError(f"{path}: {error}") from error
