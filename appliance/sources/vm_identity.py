"""Which recovery points belong to which VM, and under which name a VM's points are kept.

Names of VMs change and repeat; recovery points are listed, pruned and restored by name. So:

- A VM is who its server says it is: the server's own id and the VM's instance uuid (its moref,
  where a hypervisor has no such uuid, or has given it to several VMs). That stands in the hardware
  document of each point, key `identity`. Another server means another VM, because copies may share
  an instance uuid.
- A name belongs to the VM of the newest point kept under it. A VM keeps the name of its newest
  point as long as that name is its own: renamed in vSphere, it goes on under the name that it was
  first backed up with, with one chain and one retention.
- A VM without points takes its own name if nobody has it, else `name@host`, else that with the id.
  So a rebuilt VM of the same name, or one on another host, never continues a stranger's chain.

Two processes may still give two VMs one name, each for its first point. The rule heals that: the
one whose point is newer keeps the name, the other moves on with its next point. Names are never
trusted for content: whoever builds on a parent compares identities (`identity_of`).

Pure, but for `PointNames` remembering the names it gave out. Thread-safe.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import chain, count
from typing import Any, NewType, TypeGuard

from appliance.base.ids import RecoveryPointId

IDENTITY = "identity"
"""Key in the hardware document of a recovery point."""

NAME_LIMIT_CHARS = 255  # of Manifest.vm
_TEXT_LIMIT_CHARS = 256

VmKey = NewType("VmKey", str)
"""Equal for two identities of the same VM."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VmIdentity:
    server_id: str  # vCenter's instance uuid, or what stands for a lone host
    moref: str  # changes when the VM is registered anew
    instance_uuid: str | None  # vSphere's config.instanceUuid: unique per vCenter, kept by renames

    @property
    def key(self) -> VmKey:
        return VmKey(f"{self.server_id}/{self.instance_uuid or self.moref}")

    def as_json(self) -> dict[str, str | None]:
        """What stands under `IDENTITY` in the hardware document."""
        return {
            "server_id": self.server_id,
            "moref": self.moref,
            "instance_uuid": self.instance_uuid,
        }


def identity_of(hardware: Mapping[str, Any]) -> VmIdentity | None:
    """Read the identity out of a hardware document; None: it has none, as of a disk image."""
    found = hardware.get(IDENTITY)
    if not isinstance(found, Mapping):
        return None
    server_id, moref, uuid = (found.get(k) for k in ("server_id", "moref", "instance_uuid"))
    if not _is_text(server_id) or not _is_text(moref) or not (uuid is None or _is_text(uuid)):
        return None
    return VmIdentity(server_id=server_id, moref=moref, instance_uuid=uuid)


def _is_text(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and 0 < len(value) <= _TEXT_LIMIT_CHARS


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownPoint:
    """A recovery point, as far as naming needs it."""

    point_id: RecoveryPointId
    name: str
    created_at: datetime
    vm_key: VmKey | None  # None: of no hypervisor


class PointNames:
    """Answers for one look at the repository; make a new one for the next run.

    Of each name the newest point is enough.
    """

    def __init__(self, points: Iterable[KnownPoint]) -> None:
        self._lock = threading.Lock()
        self._owners: dict[str, VmKey | None] = {}
        self._newest: dict[VmKey, KnownPoint] = {}
        for point in sorted(points, key=lambda point: (point.created_at, point.point_id)):
            self._owners[point.name] = point.vm_key
            if point.vm_key is not None:
                self._newest[point.vm_key] = point

    def newest_of(self, vm: VmIdentity) -> KnownPoint | None:
        """Return the newest point of this very VM, under whatever name."""
        return self._newest.get(vm.key)

    def name_for(self, vm: VmIdentity, vm_name: str, host: str) -> str:
        """Return the name for the next point of `vm`, now called `vm_name` on `host`.

        The same answer for the same VM until this object goes; two VMs never get one name.
        """
        key = vm.key
        newest = self._newest.get(key)
        candidates = chain(
            [newest.name] if newest else [],
            [_joined(vm_name, ""), _joined(vm_name, f"@{host}")],
            [_joined(vm_name, f"@{host}#{vm.instance_uuid or vm.moref}")],
            (_joined(vm_name, f"@{host}#{number}") for number in count(2)),
        )
        with self._lock:
            return next(n for n in candidates if self._owners.setdefault(n, key) == key)


def point_name(vm: VmIdentity, vm_name: str, host: str, points: Iterable[KnownPoint]) -> str:
    """As `PointNames.name_for`, for one VM."""
    return PointNames(points).name_for(vm, vm_name, host)


def _joined(vm_name: str, suffix: str) -> str:
    """The suffix stays whole; `vm_name` gives way."""
    return (vm_name[: NAME_LIMIT_CHARS - len(suffix)] + suffix)[:NAME_LIMIT_CHARS]
