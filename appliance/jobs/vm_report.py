"""Backups of VMs as JSON documents: for `backup vm --json` and for the catalog.

Field names carry units; the same in the command line, the API and the result of a run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from appliance.base.error_document import error_document
from appliance.jobs.disk_transfer import DiskOutcome

if TYPE_CHECKING:
    from appliance.jobs.vm_backup import VmResult


def result_document(result: VmResult) -> dict[str, Any]:
    document: dict[str, Any] = {
        "vm": result.vm,
        "host": result.host,
        "status": result.status,
        "attempts": result.attempts,
        "seconds": round(result.seconds, 3),
        "error": error_document(result.error) if result.error else None,
        "reasons": [reason.as_json() for reason in dict.fromkeys(result.vm_reasons)],
    }
    backup = result.backup
    if backup is None:
        return document | {"point_id": None, "disks": [], "skipped": []}
    manifest = backup.manifest
    return document | {
        "point_id": manifest.point_id,
        "created_at": manifest.created_at.isoformat(),
        "consistency": manifest.consistency,
        "parent": manifest.parent,
        "disks": [disk_document(disk) for disk in backup.disks],
        "skipped": [
            {"label": disk.label, "reason": disk.reason.as_json()} for disk in backup.skipped
        ],
    }


def disk_document(disk: DiskOutcome) -> dict[str, Any]:
    image, transfer = disk.image, disk.transfer
    return {
        "number": disk.number,
        "label": disk.label,
        "mode": disk.mode,
        "transport": transfer.transport,
        "refusals": [reason.as_json() for reason in transfer.refusals],
        "reopened": transfer.reopened,
        "size_bytes": image.size_bytes,
        "read_bytes": image.read_bytes,
        "changed_bytes": image.changed_bytes,
        "new_bytes": image.new_bytes,
        "stored_bytes": image.stored_bytes,
        "resumed_bytes": disk.resumed_bytes,
        "seconds": round(disk.seconds, 3),
        "read_bytes_per_s": round(image.read_bytes / max(disk.seconds, 1e-9)),
        "audit": None
        if disk.audit is None
        else {
            "seed": disk.audit.seed,
            "read_bytes": disk.audit.read_bytes,
            "mismatch_at": disk.audit.mismatch.offset if disk.audit.mismatch else None,
        },
        "reasons": [reason.as_json() for reason in disk.reasons],
    }
