"""Hyper-V as a source: a logged-in host behind the contract of the jobs.

Data path: inventory -> `SourceVm`s; `freeze` -> `hyperv_freeze`; what dead runs left ->
`hyperv_orphans`. The nodes of a cluster are one source (`hyperv_nodes`).

Thread model: any thread; the session serves them all.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from appliance.base.backoff import Backoff
from appliance.base.clock import Clock
from appliance.base.errors import UsageError
from appliance.base.ids import RunId
from appliance.base.reasons import Reason
from appliance.base.run_context import RunContext
from appliance.sources.contract import FreezeRequest, Orphan, SourceVm
from appliance.sources.frozen import FrozenVm
from appliance.sources.hyperv_errors import hyperv_calls
from appliance.sources.hyperv_freeze import frozen_vm
from appliance.sources.hyperv_freeze_run import FreezeTools
from appliance.sources.hyperv_host import HypervHost
from appliance.sources.hyperv_listing import vm_identity, vm_obstacles, volume_label
from appliance.sources.hyperv_nodes import HypervNodes, UnseenVm
from appliance.sources.hyperv_orphans import remove_orphans
from appliance.sources.hyperv_smb_reader import TRANSPORT
from appliance.sources.intents import Intents
from hyperv.patience import Patience
from hyperv.script_types import Vm


@dataclass(frozen=True, slots=True, kw_only=True)
class HypervTools:
    """How a Hyper-V source goes about it, the same for all hosts."""

    reopening: Backoff = field(default_factory=Backoff)  # of an SMB connection that broke
    wait: Callable[[float], None] = time.sleep


class HypervSource:
    """A `VmSource`. It takes the host over and closes it."""

    def __init__(
        self,
        host: HypervHost,
        intents: Intents,
        appliance_id: str,
        clock: Clock,
        tools: HypervTools | None = None,
    ) -> None:
        tools = tools or HypervTools()
        self._nodes = HypervNodes(host)
        self._freezing = FreezeTools(
            host=host,
            nodes=self._nodes,
            appliance_id=appliance_id,
            intents=intents,
            clock=clock,
            reopening=tools.reopening,
            wait=tools.wait,
        )
        self._lock = threading.Lock()
        self._leftovers: dict[RunId, list[Reason]] = {}

    @property
    def name(self) -> str:
        return self._nodes.name

    def list_vms(self) -> list[SourceVm]:
        survey = self._nodes.survey()
        return [
            *(self._source_vm(each.host, each.vm) for each in survey.found),
            *(self._unseen_vm(each) for each in survey.unseen),
        ]

    def keys_with_tag(self, tag: str) -> frozenset[str]:
        """None: Hyper-V has no tags."""
        return frozenset()

    @contextmanager
    def freeze(
        self, vm: SourceVm, request: FreezeRequest, context: RunContext
    ) -> Iterator[FrozenVm]:
        if request.transports and TRANSPORT not in request.transports:
            raise UsageError(f"disks of a Hyper-V host are read by {TRANSPORT} only")
        leftovers: list[Reason] = []
        with self._lock:
            self._leftovers[request.run_id] = leftovers
        tools = replace(self._freezing, host=self._nodes.owner(vm.key, vm.host))
        with frozen_vm(tools, vm, request, context, leftovers) as frozen:
            yield frozen

    def leftovers(self, run_id: RunId) -> tuple[Reason, ...]:
        with self._lock:
            return tuple(self._leftovers.pop(run_id, ()))

    def remove_orphans(self, alive: Callable[[], Collection[str]]) -> list[Orphan]:
        tools = self._freezing
        hosts, failures = self._nodes.answering()
        with hyperv_calls(self.name):
            return remove_orphans(
                [host.session for host in hosts],
                tools.appliance_id,
                tools.intents,
                alive,
                Patience(wait=tools.wait),
                has_reference_points=tools.host.facts.reference_points,
                is_everybody=not failures and not self._nodes.missing(),
            )

    def close(self) -> None:
        self._nodes.close()

    def _source_vm(self, host: HypervHost, vm: Vm) -> SourceVm:
        volumes = dict.fromkeys(volume_label(self.name, disk.path) for disk in vm.disks)
        return SourceVm(
            key=vm.id,
            name=vm.name,
            identity=vm_identity(host, vm.id),
            folder=vm.folder,
            host=host.facts.computer_name,
            datastores=tuple(volume for volume in volumes if volume),
            size_bytes=sum(disk.size_bytes for disk in vm.disks),
            obstacles=vm_obstacles(host.facts, vm),
        )

    def _unseen_vm(self, unseen: UnseenVm) -> SourceVm:
        return SourceVm(
            key=unseen.vm.vm_id,
            name=unseen.vm.name,
            identity=vm_identity(self._nodes.first, unseen.vm.vm_id),
            host=unseen.vm.owner,
            obstacles=(unseen.reason,),
        )
