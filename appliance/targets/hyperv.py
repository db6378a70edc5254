"""Hyper-V as a target: a logged-in host behind the contract of the jobs.

It shares its host and journal with the `HypervSource` of the same process.

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
from appliance.sources.hyperv_errors import hyperv_calls
from appliance.sources.hyperv_host import HypervHost, patience_until
from appliance.sources.intents import Intents
from appliance.targets import hyperv_configuration, hyperv_existing
from appliance.targets.contract import (
    DiskSink,
    ExistingDisk,
    ExistingVm,
    NewVm,
    NewVmRequest,
)
from appliance.targets.hyperv_new_vm import BuildTools, new_vm
from hyperv.new_vm import set_power


class HypervTarget:
    """A `VmTarget`. Its host is somebody else's to close."""

    def __init__(self, host: HypervHost, intents: Intents, appliance_id: str) -> None:
        self._host = host
        self._session = host.session
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
        tools = BuildTools(host=self._host, appliance_id=self._appliance_id, intents=self._intents)
        with new_vm(tools, request, context, leftovers) as made:
            yield made

    def leftovers(self, run_id: RunId) -> tuple[Reason, ...]:
        with self._lock:
            return tuple(self._leftovers.pop(run_id, ()))

    def power_on(self, key: str, *, same_vm: bool, cancel: CancelToken) -> None:
        """Hyper-V never asks whether it is a copy."""
        with hyperv_calls(self.name, cancel):
            set_power(self._session, key, "on", patience_until(cancel))

    def look(self, key: str) -> ExistingVm:
        with hyperv_calls(self.name):
            return hyperv_existing.look(self._session, key)

    def power_off(self, key: str, *, within_s: float, cancel: CancelToken) -> None:
        with hyperv_calls(self.name, cancel):
            hyperv_existing.power_off(self._session, key, within_s, patience_until(cancel))

    def refusal(self, key: str, disk: ExistingDisk, run_id: RunId) -> Reason | None:
        with hyperv_calls(self.name):
            return hyperv_existing.refusal(self._session, key, disk)

    def open_disk(self, key: str, disk: ExistingDisk, run_id: RunId) -> DiskSink:
        with hyperv_calls(self.name):
            return hyperv_existing.open_in_place(self._host, self._appliance_id, key, disk, run_id)

    def reset_tracking(self, key: str, run_id: RunId) -> tuple[Reason, ...]:
        with hyperv_calls(self.name):
            return hyperv_existing.reset_tracking(self._session, key, self._intents)

    def roll_back_configuration(
        self, key: str, hardware: Mapping[str, Any], networks: Mapping[str, str]
    ) -> tuple[Reason, ...]:
        with hyperv_calls(self.name):
            return hyperv_configuration.roll_back(self._session, key, hardware, networks)
