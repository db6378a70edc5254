"""The snapshots of a VM as a flat list, each with the marker it carries, if it is one of ours.

Read-only. Names and descriptions come from anybody; only `marker` (see `marker.py`) is trusted.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pyVmomi import vim

from vmware.errors import ProtocolError
from vmware.marker import Marker, parse_marker
from vmware.properties import fetch_one
from vmware.session import Session

_ENTRIES_LIMIT = 4096  # a VM has at most 32 levels


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotEntry:
    moref: str
    name: str
    created_at: datetime
    quiesced: bool
    backup_manifest: str | None  # path of the VSS writers' manifest, relative to the VM's folder
    depth: int  # 1 for a root
    marker: Marker | None


def list_snapshots(session: Session, vm_moref: str) -> tuple[SnapshotEntry, ...]:
    """Every snapshot of the VM, parents before children; () when it has none.

    Raises: VsphereError, ObjectGoneError when the VM is gone.
    """
    vm = session.object(vim.VirtualMachine, vm_moref)
    info = fetch_one(session, f"list snapshots of {vm_moref}", vm, ("snapshot",)).values.get(
        "snapshot"
    )
    return flatten(info)


def flatten(info: Any) -> tuple[SnapshotEntry, ...]:
    """The entries of a `vim.vm.SnapshotInfo` (or None). Raises ProtocolError: absurdly many."""
    entries: list[SnapshotEntry] = []
    waiting = [(tree, 1) for tree in reversed((info and info.rootSnapshotList) or [])]
    while waiting:
        tree, depth = waiting.pop()
        if len(entries) == _ENTRIES_LIMIT:
            raise ProtocolError(f"more than {_ENTRIES_LIMIT} snapshots of one VM")
        entries.append(
            SnapshotEntry(
                moref=tree.snapshot._GetMoId(),
                name=tree.name,
                created_at=tree.createTime,
                quiesced=bool(tree.quiesced),
                backup_manifest=tree.backupManifest or None,
                depth=depth,
                marker=parse_marker(tree.description),
            )
        )
        waiting += [(child, depth + 1) for child in reversed(tree.childSnapshotList or [])]
    return tuple(entries)
