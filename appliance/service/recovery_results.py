"""What came of a restore, a roll-back or an instant recovery, as the JSON of API and command line.

Thread model: pure.
"""

from __future__ import annotations

from typing import Any

from appliance.jobs.instant_recovery import StartResult
from appliance.jobs.rollback_contract import RollbackResult
from appliance.jobs.vm_restore import VmRestoreResult


def started_result(started: StartResult) -> dict[str, Any]:
    record, life = started.record, started.life
    return {
        "vm": record.vm,
        "phase": record.phase,
        "steps": [{"name": step.name, "seconds": round(step.seconds, 3)} for step in record.steps],
        "guest": None
        if life is None
        else {"heartbeat": life.life, "host_name": life.host_name, "address": life.address},
    }


def restored_result(made: VmRestoreResult) -> dict[str, Any]:
    return {
        "vm": made.vm,
        "id": made.key,
        "transport": made.transport,
        "powered_on": made.powered_on,
        "disks": [
            {
                "number": disk.number,
                "label": disk.label,
                "size_bytes": disk.size_bytes,
                "written_bytes": disk.written_bytes,
                "seconds": round(disk.seconds, 3),
            }
            for disk in made.disks
        ],
        "seconds": round(made.seconds, 3),
    }


def rolled_back_result(rolled: RollbackResult) -> dict[str, Any]:
    return {
        "vm": rolled.vm,
        "id": rolled.key,
        "verified": rolled.verified,
        "powered_on": rolled.powered_on,
        "disks": [
            {
                "number": disk.number,
                "label": disk.label,
                "mode": disk.mode,
                "size_bytes": disk.size_bytes,
                "written_bytes": disk.written_bytes,
            }
            for disk in rolled.disks
        ],
        "seconds": round(rolled.seconds, 3),
    }
