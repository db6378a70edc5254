"""A Hyper-V host with one VM, in this process: a thing is there until a script removes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hyperv.errors import HypervError, SessionLostError
from hyperv.marker import Marker
from tests.support.fake_hyperv_session import FakeHypervSession

APPLIANCE = "0f0e0d0c-0b0a-4908-8706-050403020100"
OURS = Marker(appliance_id=APPLIANCE, run_id="20261120T031500Z-0123456789ab")
VM = "11111111-2222-3333-4444-555555555555"
MERGING = 32772


@dataclass
class World:
    """A host with one VM; `errors` are raised by the next call of a script."""

    state: int = 2
    checkpoints: dict[str, str] = field(default_factory=dict)  # name by id
    points: list[str] = field(default_factory=list)
    rct_ids: tuple[str, ...] = ("rctX:1",)
    busy_looks: int = 0
    job_state: int = 7
    job_error: str = ""
    errors: dict[str, list[HypervError]] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)  # of VMs by id
    disk_files: list[str] = field(default_factory=list)  # markers
    lost: set[str] = field(default_factory=set)  # carried out, but the answer does not come

    def session(self) -> FakeHypervSession:
        names = [name.removeprefix("do_") for name in dir(self) if name.startswith("do_")]
        return FakeHypervSession({name: self._handler(name) for name in names})

    def _handler(self, name: str) -> Any:
        def handle(parameters: Mapping[str, Any]) -> Any:
            if waiting := self.errors.get(name):
                return waiting.pop(0)
            answer = getattr(self, f"do_{name}")(parameters)
            if name in self.lost:
                self.lost.remove(name)
                return SessionLostError(f"{name}: lost")
            return answer

        return handle

    def do_vm_state(self, _p: Mapping[str, Any]) -> dict[str, Any]:
        self.busy_looks -= 1
        return {
            "id": VM,
            "name": "web",
            "state": self.state,
            "operational_status": [2, MERGING] if self.busy_looks >= 0 else [2],
            "heartbeat": 5,
            "addresses": [],
            "guest_name": "",
            "disk_paths": [],
            "uptime_s": 1,
        }

    def do_list_checkpoints(self, _p: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "checkpoints": [
                {
                    "id": each,
                    "vm_id": VM,
                    "name": name,
                    "kind": "standard" if each.startswith("user") else "recovery",
                    "parent": "",
                    "created_at": "",
                }
                for each, name in self.checkpoints.items()
            ]
        }

    def do_create_checkpoint(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        made = f"cp{len(self.checkpoints)}-{parameters['consistency']}"
        if self.job_state == 7:
            self.checkpoints[made] = "web - Backup"
        return {"job_id": "job", "checkpoint_id": ""}

    def do_name_checkpoint(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        self.checkpoints[parameters["checkpoint_id"]] = parameters["marker"]
        return {"job_id": ""}

    def do_remove_checkpoint(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        found = self.checkpoints.pop(parameters["checkpoint_id"], None)
        return {"found": found is not None, "job_id": ""}

    def do_convert_to_reference_point(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        del self.checkpoints[parameters["checkpoint_id"]]
        self.points.append(f"rp{len(self.points)}")
        return {"job_id": "job", "reference_point_id": ""}

    def do_list_reference_points(self, _p: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "reference_points": [
                {
                    "id": point,
                    "vm_id": VM,
                    "type": 2,
                    "consistency": 1,
                    "disks": [
                        {"attachment": "a", "rct_id": rct, "path": "", "virtual_disk_id": ""}
                        for rct in self.rct_ids
                    ],
                }
                for point in self.points
            ]
        }

    def do_remove_reference_point(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        self.points.remove(parameters["reference_point_id"])
        return {"found": True, "job_id": ""}

    def do_list_shadows(self, _p: Mapping[str, Any]) -> dict[str, Any]:
        return {"shadows": []}

    def do_list_vms(self, _p: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "vms": [
                {
                    "id": each, "name": each, "state": 3, "generation": 2, "version": "10.0",
                    "clustered": False, "operational_status": [2], "processors": 1,
                    "memory_bytes": 1 << 30, "folder": "D:\\VMs", "checkpoint_type": 3,
                    "parent_checkpoint": "", "replication_mode": 0, "tpm": False,
                    "shielded": False, "vss_status": 2, "fibre_channel": 0, "notes": notes,
                    "disks": [],
                }
                for each, notes in self.notes.items()
            ]
        }  # fmt: skip

    def do_remove_vm(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        assert parameters["marker"] in self.notes.pop(parameters["vm_id"])
        return {"found": True, "disk_paths": []}

    def do_remove_disk_files(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        assert not any(parameters["marker"] in notes for notes in self.notes.values())
        self.disk_files.remove(parameters["marker"])
        return {"removed": 1}

    def do_list_disk_files(self, _p: Mapping[str, Any]) -> dict[str, Any]:
        return {"markers": self.disk_files}

    def do_list_shares(self, _p: Mapping[str, Any]) -> dict[str, Any]:
        return {"shares": []}

    def do_job_state(self, _p: Mapping[str, Any]) -> dict[str, Any]:
        state, self.job_state = self.job_state, 7
        return {
            "found": True,
            "state": state,
            "percent": 100,
            "error_code": 32768,
            "error": self.job_error,
            "description": "",
            "checkpoints": [],
            "reference_points": [],
        }
