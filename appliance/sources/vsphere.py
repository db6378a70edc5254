"""vSphere as a source: a logged-in vCenter or ESXi host behind the contract of the jobs.

Data path: inventory -> `SourceVm`s; `freeze` -> `vsphere_freeze`; transports by preference, from
`vsphere_transports`; what dead runs left -> `vsphere_orphans`.

Thread model: any thread; the session serves them all.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

from appliance.base.ids import RunId
from appliance.base.reasons import Reason
from appliance.base.run_context import RunContext
from appliance.sources.contract import FreezeRequest, Orphan, SourceVm
from appliance.sources.frozen import FrozenVm
from appliance.sources.intents import Intents
from appliance.sources.vm_identity import VmIdentity
from appliance.sources.vsphere_freeze import FreezeTools, frozen_vm
from appliance.sources.vsphere_host import VsphereHost
from appliance.sources.vsphere_listing import vm_identities, vm_obstacles
from appliance.sources.vsphere_orphans import remove_orphans
from appliance.sources.vsphere_reasons import vsphere_calls
from appliance.sources.vsphere_transports import VsphereTransports
from vmware.inventory import VmInfo, list_vms
from vmware.rest import RestSession
from vmware.tags import Tags


class VsphereSource:
    """A `VmSource`. It takes the host over and closes it."""

    def __init__(
        self,
        host: VsphereHost,
        transports: VsphereTransports,
        intents: Intents,
        appliance_id: str,
    ) -> None:
        self._host = host
        self._transports = transports
        self._intents = intents
        self._appliance_id = appliance_id
        self._lock = threading.Lock()
        self._leftovers: dict[RunId, list[Reason]] = {}

    @property
    def name(self) -> str:
        return self._host.name

    def list_vms(self) -> list[SourceVm]:
        with vsphere_calls(self.name):
            found = list_vms(self._host.session)
        identities = vm_identities(self._host.about.server_id, found)
        return [_source_vm(identities[vm.moref], vm) for vm in found if not vm.template]

    def keys_with_tag(self, tag: str) -> frozenset[str]:
        with vsphere_calls(self.name), RestSession.connect(self._host.session) as rest:
            return frozenset(Tags(rest).vms_with(tag))

    @contextmanager
    def freeze(
        self, vm: SourceVm, request: FreezeRequest, context: RunContext
    ) -> Iterator[FrozenVm]:
        leftovers: list[Reason] = []
        with self._lock:
            self._leftovers[request.run_id] = leftovers
        tools = FreezeTools(
            host=self.name,
            session=self._host.session,
            appliance_id=self._appliance_id,
            intents=self._intents,
            reopening=self._transports.tools.reopening,
            wait=self._transports.tools.wait,
        )
        ways = self._transports.for_run(request.run_id, self._intents, request.transports)
        with frozen_vm(tools, vm, request, ways, context, leftovers) as frozen:
            yield frozen

    def leftovers(self, run_id: RunId) -> tuple[Reason, ...]:
        with self._lock:
            return tuple(self._leftovers.pop(run_id, ()))

    def remove_orphans(self, alive: Callable[[], Collection[str]]) -> list[Orphan]:
        with vsphere_calls(self.name):
            return remove_orphans(
                self._host.session,
                self._appliance_id,
                self._transports.tools,
                self._intents,
                alive,
            )

    def close(self) -> None:
        self._host.close()


def _source_vm(identity: VmIdentity, vm: VmInfo) -> SourceVm:
    names = dict.fromkeys(disk.datastore_name for disk in vm.disks if disk.datastore_name)
    return SourceVm(
        key=vm.moref,
        name=vm.name,
        identity=identity,
        folder=vm.folder_path,
        host=vm.host_name,
        datastores=tuple(names),
        size_bytes=sum(disk.capacity_bytes for disk in vm.disks),
        obstacles=vm_obstacles(vm),
    )
