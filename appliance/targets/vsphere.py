"""vSphere as a target: a logged-in vCenter or ESXi host behind the contract of the jobs.

It shares its host, transports and journal with the `VsphereSource` of the same process, so that the
appliance's own disks are attached and detached one at a time.

Thread model: any thread; the session serves them all.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from appliance.base.ids import RunId
from appliance.base.reasons import Reason
from appliance.base.run_context import CancelToken, RunContext
from appliance.sources.intents import Intents
from appliance.sources.vsphere_host import VsphereHost
from appliance.sources.vsphere_reasons import reason, vsphere_calls
from appliance.sources.vsphere_transports import VsphereTransports
from appliance.targets import vsphere_existing
from appliance.targets.contract import (
    DiskSink,
    ExistingDisk,
    ExistingVm,
    NewVm,
    NewVmRequest,
)
from appliance.targets.vsphere_new_vm import BuildTools, new_vm
from appliance.targets.vsphere_sink import VsphereSink
from vmware.patience import Patience
from vmware.power import Origin, power_on, shut_down


class VsphereTarget:
    """A `VmTarget`. Its host is somebody else's to close."""

    def __init__(
        self,
        host: VsphereHost,
        transports: VsphereTransports,
        intents: Intents,
        appliance_id: str,
    ) -> None:
        self._host = host
        self._session = host.session
        self._transports = transports
        self._intents = intents
        self._appliance_id = appliance_id
        self._lock = threading.Lock()
        self._leftovers: dict[RunId, list[Reason]] = {}

    @property
    def name(self) -> str:
        return self._host.name

    @contextmanager
    def build(self, request: NewVmRequest, context: RunContext) -> Iterator[NewVm]:
        leftovers: list[Reason] = []
        with self._lock:
            self._leftovers[request.run_id] = leftovers
        tools = BuildTools(
            host=self.name,
            session=self._session,
            appliance_id=self._appliance_id,
            intents=self._intents,
            hot_add=self._transports.hot_add(request.run_id, self._intents),
            product_uuid=self._transports.tools.appliance_disks.devices.product_uuid(),
            wait=self._transports.tools.wait,
        )
        with new_vm(tools, request, context, leftovers) as made:
            yield made

    def leftovers(self, run_id: RunId) -> tuple[Reason, ...]:
        with self._lock:
            return tuple(self._leftovers.pop(run_id, ()))

    def power_on(self, key: str, *, same_vm: bool, cancel: CancelToken) -> None:
        with vsphere_calls(self.name, cancel):
            power_on(
                self._session,
                key,
                Origin.MOVED if same_vm else Origin.COPIED,
                patience=self._patience(cancel),
            )

    def _patience(self, cancel: CancelToken) -> Patience:
        return Patience(cancelled=lambda: cancel.cancelled, wait=self._transports.tools.wait)

    def look(self, key: str) -> ExistingVm:
        with vsphere_calls(self.name):
            return vsphere_existing.look(self._session, key)

    def power_off(self, key: str, *, within_s: float, cancel: CancelToken) -> None:
        with vsphere_calls(self.name, cancel):
            shut_down(
                self._session,
                key,
                within_s=within_s,
                patience=self._patience(cancel),
            )

    def refusal(self, key: str, disk: ExistingDisk, run_id: RunId) -> Reason | None:
        hot_add = self._transports.hot_add(run_id, self._intents)
        with vsphere_calls(self.name):
            found = vsphere_existing.refusal(self._session, key, disk, hot_add)
        return reason(found) if found is not None else None

    def open_disk(self, key: str, disk: ExistingDisk, run_id: RunId) -> DiskSink:
        hot_add = self._transports.hot_add(run_id, self._intents)
        with vsphere_calls(self.name):
            writer = vsphere_existing.open_writer(self._session, key, disk, hot_add)
        # writing that has begun is not cancelled half way: the caller asks between areas
        return VsphereSink(writer, self.name, CancelToken())

    def reset_tracking(self, key: str, run_id: RunId) -> tuple[Reason, ...]:
        with vsphere_calls(self.name):
            return vsphere_existing.reset(self._session, key, self._appliance_id, run_id)

    def roll_back_configuration(
        self, key: str, hardware: Mapping[str, Any], networks: Mapping[str, str]
    ) -> tuple[Reason, ...]:
        with vsphere_calls(self.name):
            return vsphere_existing.roll_back_configuration(self._session, key, hardware, networks)
