"""One freeze of a Hyper-V VM: what it works with, what it has said, and where its VM is.

A VM of a failover cluster may move to another node at any time; `owner` is where it is now, and
what fails because it went is `HypervMovedError`, which a new attempt mends.

Thread model: one freeze belongs to one thread.
Source: design notes sections 3 to 5.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

from appliance.base.backoff import Backoff
from appliance.base.clock import Clock
from appliance.base.consistency import Consistency
from appliance.base.errors import ApplianceError
from appliance.base.log import EventLog
from appliance.base.reasons import Reason
from appliance.base.run_context import RunContext
from appliance.sources.contract import FreezeRequest, SourceVm
from appliance.sources.hyperv_errors import HypervMovedError
from appliance.sources.hyperv_host import HypervHost
from appliance.sources.hyperv_nodes import HypervNodes
from appliance.sources.intents import Intents
from hyperv.checkpoints import Level
from hyperv.errors import HypervError
from hyperv.inventory import OFF
from hyperv.marker import Marker
from hyperv.patience import Patience
from hyperv.script_types import CheckpointDisk, Vm

log = EventLog(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class FreezeTools:
    """What a freeze works with; the same for all runs of a host."""

    host: HypervHost  # that has the VM as the freeze begins
    nodes: HypervNodes
    appliance_id: str
    intents: Intents
    clock: Clock
    reopening: Backoff
    wait: Callable[[float], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """A state of the VM that does not change."""

    at: datetime
    consistency: Consistency
    disks: Sequence[CheckpointDisk]
    is_tracked: bool


class FreezeRun:
    def __init__(
        self,
        tools: FreezeTools,
        vm: SourceVm,
        request: FreezeRequest,
        context: RunContext,
        leftovers: list[Reason],
    ) -> None:
        self.tools = tools
        self.session = tools.host.session
        self.vm = vm
        self.request = request
        self.context = context
        self.leftovers = leftovers
        self.marker = Marker(appliance_id=tools.appliance_id, run_id=request.run_id)
        self.patience = Patience(is_cancelled=lambda: context.cancel.cancelled, wait=tools.wait)
        self.reasons: list[Reason] = []
        self.is_frozen = False  # the block has begun: what it read may be built upon
        self.log = log.bind(host=tools.host.name, vm=vm.name, run=request.run_id)

    @contextmanager
    def staying(self) -> Iterator[None]:
        """What fails in the block because the VM went to another node is that error."""
        try:
            yield
        except HypervError as error:
            if self.is_at(self.tools.host):
                raise
            raise self.moved() from error

    def owner(self) -> HypervHost:
        return self.tools.nodes.owner(self.vm.key, self.vm.host)

    def is_at(self, host: HypervHost) -> bool:
        """Never raises: nobody who says otherwise counts as yes."""
        try:
            name = self.tools.nodes.owner_name(self.vm.key, self.vm.host)
        except ApplianceError:
            return True
        return name.casefold() == host.facts.computer_name.casefold()

    def moved(self) -> HypervMovedError:
        left = self.tools.host.facts.computer_name
        return HypervMovedError(
            f"{self.tools.host.name}: {self.vm.name} moved away from {left}", retryable=True
        )


def not_removed(what: str, error: ApplianceError) -> Reason:
    return Reason(
        "checkpoint.not-removed",
        f"the {what} of this run could not be removed ([{error.code}] {error})",
        "none at once: the next backup or clean-up removes it by its marker",
    )


def consistency_of(vm: Vm, level: Level) -> Consistency:
    if vm.state == OFF:
        return Consistency.OFFLINE
    return Consistency.APPLICATION if level is Level.APPLICATION else Consistency.CRASH
