"""How a lease's import makes its machine, and takes it away again (ImportVApp)."""

from __future__ import annotations

import contextlib
from typing import Any

from lab.data_plane.soap_lease import Leased
from lab.esx.errors import HostError
from lab.vcenter.call import Call
from lab.vcenter.compute import ResourcePool
from lab.vcenter.folders import Folder
from lab.vcenter.hosts import HostSystem
from lab.vcenter.virtual_machine_engine import EngineMachine
from lab.vcenter.virtual_machine_folder import create_machine, place


class ImportedMachines:
    """Thread-safe: it keeps nothing."""

    def create(
        self, call: Call, spec: Any, folder: Folder, pool: ResourcePool, host: HostSystem | None
    ) -> Leased:
        placement = place(call, folder, pool.ref, host.ref if host is not None else None)
        machine = create_machine(folder, placement, spec)
        return Leased(entity=machine, engine=machine.engine, config=machine.engine.config)

    def destroy(self, leased: Leased) -> None:
        machine = leased.entity
        if isinstance(machine, EngineMachine) and machine.registered:
            with contextlib.suppress(HostError):  # it is gone, or in use: the lease ended badly
                machine.library.destroy(machine.engine)
                machine.leave()
