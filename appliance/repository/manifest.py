"""The manifest: what one recovery point is. Writing it is the commit.

It describes itself: VM, time, consistency, hardware configuration as the source captured it, and
for each disk the root of its tree and the change id that the next incremental starts from. It is
stored as a sealed document (`document.py`) under `points/`. The models are the border: what they
have accepted is trusted inside.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints

from appliance.base.consistency import Consistency
from appliance.base.ids import RecoveryPointId, RunId
from appliance.base.units import TIB
from appliance.repository.format import DIGEST_BYTES

MANIFEST_VERSION = 1
_DIGEST_HEX = Annotated[str, StringConstraints(pattern=rf"^[0-9a-f]{{{2 * DIGEST_BYTES}}}$")]
_ID = Annotated[str, StringConstraints(pattern=r"^[0-9]{8}T[0-9]{6}Z-[0-9a-f]{12}$")]
VmName = Annotated[str, StringConstraints(min_length=1, max_length=255)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DiskEntry(_Strict):
    number: int = Field(ge=0, lt=256)
    label: str = Field(max_length=1024)
    size_bytes: int = Field(ge=0, le=64 * TIB)
    root_hex: _DIGEST_HEX
    change_id: str | None = Field(default=None, max_length=4096)
    read_bytes: int = Field(ge=0)
    changed_bytes: int = Field(ge=0)
    new_bytes: int = Field(ge=0)
    stored_bytes: int = Field(ge=0)

    @property
    def root(self) -> bytes:
        return bytes.fromhex(self.root_hex)


class Manifest(_Strict):
    version: int = Field(default=MANIFEST_VERSION, ge=1, le=MANIFEST_VERSION)
    point_id: _ID
    run_id: _ID
    vm: VmName
    created_at: AwareDatetime  # when the disks were frozen
    committed_at: AwareDatetime
    consistency: Consistency
    parent: _ID | None = None
    source: str = Field(max_length=64)  # "image", later "vsphere", "hyperv"
    hardware: dict[str, Any] = Field(default_factory=dict)  # as captured, opaque to the repository
    disks: tuple[DiskEntry, ...] = Field(min_length=1, max_length=256)
    written_by: str = Field(max_length=64)

    @property
    def id(self) -> RecoveryPointId:
        return RecoveryPointId(self.point_id)

    @property
    def run(self) -> RunId:
        return RunId(self.run_id)

    @property
    def size_bytes(self) -> int:
        return sum(disk.size_bytes for disk in self.disks)

    def disk(self, number: int) -> DiskEntry | None:
        return next((disk for disk in self.disks if disk.number == number), None)
