"""The nodes of a registered Hyper-V host: itself, or those of its failover cluster.

Data path: `HypervSource` and the listing ask here which node has a VM now and through which one a
disk file is read; every call on a host then goes to that node itself, because a node must not log
in to another one for us.

Invariants: the cluster is asked anew whenever a VM's owner matters, because a VM moves when it
likes. Of a host without a cluster nothing is asked. A node that does not answer is tried again when
it is needed, but not within a minute.

Thread model: any thread; calls block. Close it when done.
Source: design notes section 2.3.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from appliance.base.errors import ApplianceError
from appliance.base.log import EventLog
from appliance.base.reasons import Reason
from appliance.sources.hyperv_errors import HypervNodeError, HypervUnreachableError, hyperv_calls
from appliance.sources.hyperv_host import HypervHost
from hyperv import inventory
from hyperv.script_types import Cluster, ClusterVm, Vm
from hyperv.smb_files import SmbLogin

log = EventLog(__name__)

_AGAIN_AFTER_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundVm:
    host: HypervHost
    vm: Vm


@dataclass(frozen=True, slots=True, kw_only=True)
class UnseenVm:
    """The cluster has it, but its node cannot be asked."""

    vm: ClusterVm
    reason: Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    found: Sequence[FoundVm]
    unseen: Sequence[UnseenVm]


class HypervNodes:
    """It takes the host over and closes it."""

    def __init__(self, first: HypervHost, *, clock_s: Callable[[], float] = time.monotonic) -> None:
        self.first = first
        self._clock_s = clock_s
        self._lock = threading.Lock()
        self._failed: dict[Callable[[], HypervHost], tuple[float, ApplianceError]] = {}
        self._open: dict[Callable[[], HypervHost], HypervHost] = {}

    @property
    def name(self) -> str:
        return self.first.name

    def close(self) -> None:
        """Log out everywhere; idempotent, never raises."""
        self.close_others()
        self.first.close()

    def close_others(self) -> None:
        """Log out of all but the first, which is somebody else's."""
        with self._lock:
            opened, self._open = list(self._open.values()), {}
        for host in opened:
            host.close()

    def answering(self) -> tuple[list[HypervHost], list[ApplianceError]]:
        """Every node that is logged in to now, and why the others are not."""
        failures: list[ApplianceError] = []
        hosts = [self.first]
        with self._lock:
            for log_in in self.first.others:
                at_s, failure = self._failed.get(log_in, (0.0, None))
                if failure is not None and self._clock_s() - at_s < _AGAIN_AFTER_S:
                    failures.append(failure)
                    continue
                try:
                    if log_in not in self._open:
                        self._open[log_in] = log_in()
                    hosts.append(self._open[log_in])
                except ApplianceError as error:
                    log.warning("a node was not reached", host=self.name, error=error)
                    self._failed[log_in] = (self._clock_s(), error)
                    failures.append(error)
        return hosts, failures

    def cluster(self) -> Cluster | None:
        """What the failover cluster says now, by the first node that answers; None: there is none.

        Raises: as `hyperv_errors`.
        """
        if not self.first.facts.cluster:
            return None
        try:
            return _ask(self.first)
        except HypervUnreachableError:
            for host in self.answering()[0][1:]:
                try:
                    return _ask(host)
                except HypervUnreachableError:
                    continue
            raise

    def node(self, computer: str) -> HypervHost:
        """The node of this name, logged in. Raises HypervNodeError."""
        wanted = computer.casefold()
        if self.first.facts.computer_name.casefold() == wanted:
            return self.first
        with self._lock:
            known = list(self._open.values())
        for host in known:
            if host.facts.computer_name.casefold() == wanted:
                return host
        hosts, failures = self.answering()
        for host in hosts:
            if host.facts.computer_name.casefold() == wanted:
                return host
        why = "; ".join(str(error) for error in failures) or "it is not registered"
        raise HypervNodeError(
            f"{self.name}: node {computer} cannot be asked: {why}", retryable=bool(failures)
        )

    def owner(self, vm_id: str, seen_on: str) -> HypervHost:
        """The node that has the VM now.

        Args:
            seen_on: where it was seen; a VM that is not the cluster's stays there.

        Raises: HypervNodeError, and as `cluster`.
        """
        if not self.first.facts.cluster:
            return self.first
        return self.node(self.owner_name(vm_id, seen_on))

    def owner_name(self, vm_id: str, seen_on: str) -> str:
        """As `owner`, without a login there. Raises: as `cluster`."""
        found = self.cluster()
        if found is None:
            return self.first.facts.computer_name
        return found.owner_of(vm_id) or seen_on

    def smb_login(self, paths: Sequence[str], owner: HypervHost) -> SmbLogin:
        """Through whom files are read: the coordinator of their shared volume, else the VM's owner.

        Every node shows a shared volume; of what lies elsewhere only the owner has it.
        """
        try:
            found = self.cluster() if owner.facts.admin_shares else None
            names = {found.coordinator_of(path) for path in paths} if found else set()
            if len(names) == 1 and "" not in names:
                coordinator = self.node(names.pop())
                return coordinator.smb if coordinator.facts.admin_shares else owner.smb
        except ApplianceError as error:
            log.warning("no coordinator; the owner is asked", host=self.name, error=error)
        return owner.smb

    def survey(self) -> Survey:
        """The VMs of all nodes, each once. Raises: as `hyperv_errors`, of the first node."""
        hosts, _ = self.answering()
        found: dict[str, FoundVm] = {}
        for host in hosts:
            try:
                with hyperv_calls(self.name):
                    listed = inventory.list_vms(host.session)
            except HypervUnreachableError:
                if host is self.first and len(hosts) == 1:
                    raise
                continue  # what it owns is unseen below
            for vm in listed:
                found.setdefault(vm.id, FoundVm(host=host, vm=vm))
        unseen: list[UnseenVm] = []
        known = self.cluster()
        for each in known.vms if known else ():
            at = found.get(each.vm_id)
            if at is not None and _is(at.host, each.owner):
                continue
            try:  # it moved while the nodes were asked, or its node has failed
                host = self.node(each.owner)
                with hyperv_calls(self.name):
                    vm = inventory.read_vm(host.session, each.vm_id)
                found[each.vm_id] = FoundVm(host=host, vm=vm)
            except ApplianceError as error:
                if at is None:
                    unseen.append(UnseenVm(vm=each, reason=_unseen(each, error)))
        return Survey(
            found=sorted(found.values(), key=lambda one: (one.vm.name.casefold(), one.vm.id)),
            unseen=sorted(unseen, key=lambda one: (one.vm.name.casefold(), one.vm.vm_id)),
        )

    def missing(self) -> dict[str, str]:
        """Nodes of the cluster that cannot be asked, each with why. Raises: as `cluster`."""
        found = self.cluster()
        missing: dict[str, str] = {}
        for node in found.nodes if found else ():
            try:
                self.node(node.name)
            except HypervNodeError as error:
                missing[node.name] = str(error)
        return missing


def _ask(host: HypervHost) -> Cluster:
    with hyperv_calls(host.name):
        return inventory.cluster(host.session)


def _is(host: HypervHost, computer: str) -> bool:
    return host.facts.computer_name.casefold() == computer.casefold()


def _unseen(vm: ClusterVm, error: ApplianceError) -> Reason:
    return Reason(
        "vm.node-not-asked",
        f"its node {vm.owner} cannot be asked ([{error.code}] {error})",
        "register every node of the cluster with `host add --node`, or bring the node back",
    )
