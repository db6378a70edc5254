"""The .vmsd file: a virtual machine's snapshots as settings, and read back.

The frozen configurations lie beside it as .vmsn files (text of a .vmx); change ids, which a real
host keeps in its own files, are settings here. Source: the .vmsd files that ESXi writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime

from lab.esx.errors import HostError
from lab.esx.hardware import VmConfig
from lab.esx.vm_state import PowerState, Snapshot

VMSD_BYTES_MAX = 1 << 20
_MILLION = 1_000_000


def format_snapshots(snapshots: Iterable[Snapshot], current: int | None) -> dict[str, str]:
    ordered = sorted(snapshots, key=lambda snapshot: snapshot.id)
    settings = {
        ".encoding": "UTF-8",
        "snapshot.lastUID": str(ordered[-1].id if ordered else 0),
        "snapshot.current": str(current or 0),
        "snapshot.numSnapshots": str(len(ordered)),
    }
    for place, snapshot in enumerate(ordered):
        prefix = f"snapshot{place}"
        micros = int(snapshot.created_at.timestamp() * _MILLION)
        settings |= {
            f"{prefix}.uid": str(snapshot.id),
            f"{prefix}.filename": vmsn_name(snapshot.config, snapshot.id),
            f"{prefix}.displayName": snapshot.name,
            f"{prefix}.description": snapshot.description,
            f"{prefix}.createTimeHigh": str(micros >> 32),
            f"{prefix}.createTimeLow": str(micros & 0xFFFF_FFFF),
            f"{prefix}.quiesced": "TRUE" if snapshot.quiesced else "FALSE",
            f"{prefix}.powered": "TRUE" if snapshot.power is PowerState.ON else "FALSE",
        }
        if snapshot.parent is not None:
            settings[f"{prefix}.parent"] = str(snapshot.parent)
        for disk in snapshot.config.disks:
            if disk.change_id:
                settings[f"{prefix}.changeId{disk.key}"] = disk.change_id
    return settings


def vmsn_name(config: VmConfig, snapshot_id: int) -> str:
    return f"{config.file_stem}-Snapshot{snapshot_id}.vmsn"


def read_snapshots(
    settings: dict[str, str], config_of: Callable[[str], VmConfig]
) -> tuple[dict[int, Snapshot], int | None]:
    """Return the snapshots and the current one; `config_of` opens a .vmsn by its name.

    Raises:
        HostError: the settings are not those of a .vmsd, or a .vmsn is missing.
    """
    snapshots: dict[int, Snapshot] = {}
    try:
        for place in range(int(settings.get("snapshot.numSnapshots", "0"))):
            snapshot = _read_one(settings, f"snapshot{place}", config_of)
            snapshots[snapshot.id] = snapshot
        current = int(settings.get("snapshot.current", "0"))
    except (KeyError, ValueError) as error:
        raise HostError(f"the list of snapshots is not readable: {error}") from error
    known = set(snapshots)
    if any(one.parent is not None and one.parent not in known for one in snapshots.values()):
        raise HostError("the list of snapshots names a parent it does not have")
    return snapshots, current if current in known else None


def _read_one(
    settings: dict[str, str], prefix: str, config_of: Callable[[str], VmConfig]
) -> Snapshot:
    config = config_of(settings[f"{prefix}.filename"])
    disks = tuple(
        replace(disk, change_id=settings.get(f"{prefix}.changeId{disk.key}", ""))
        for disk in config.disks
    )
    high, low = int(settings[f"{prefix}.createTimeHigh"]), int(settings[f"{prefix}.createTimeLow"])
    parent = settings.get(f"{prefix}.parent")
    return Snapshot(
        id=int(settings[f"{prefix}.uid"]),
        name=settings.get(f"{prefix}.displayName", ""),
        description=settings.get(f"{prefix}.description", ""),
        created_at=datetime.fromtimestamp(((high << 32) | low) / _MILLION, UTC),
        power=PowerState.ON if settings.get(f"{prefix}.powered") == "TRUE" else PowerState.OFF,
        quiesced=settings.get(f"{prefix}.quiesced") == "TRUE",
        config=replace(config, disks=disks),
        parent=int(parent) if parent else None,
    )
