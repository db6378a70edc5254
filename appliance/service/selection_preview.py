"""Which VMs a selection means now, before a job with it is saved: for the API and the UI.

The hosts are asked as a run of the job would ask them; their answer is kept for a short while, so
that a wizard may ask at every change.
Thread model: any thread; one of them asks the hosts, the others wait for its answer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice

from appliance.base.clock import Clock
from appliance.base.errors import ApplianceError, UsageError
from appliance.base.reasons import Reason
from appliance.catalog.job import VmSelection
from appliance.jobs.job_selection import (
    JobInventory,
    read_inventory,
    select_for_job,
    tags_of,
)
from appliance.jobs.runners.site import OpenedSources
from appliance.jobs.vm_selection import SelectedVm, vm_path
from appliance.sources.vm_identity import PointNames

KEPT_S = 30.0
_KEPT_MOST = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class MeantVm:
    host: str
    name: str
    path: str  # with its folder
    point_name: str
    has_points: bool
    size_bytes: int
    obstacles: tuple[Reason, ...]  # why it would be left out; empty: it would not


@dataclass(frozen=True, slots=True, kw_only=True)
class MeantVms:
    vms: tuple[MeantVm, ...]
    vm_count: int  # of all VMs that there are
    reasons: tuple[Reason, ...]
    failures: tuple[tuple[str, str], ...]  # host and why it could not be asked


class SelectionPreview:
    def __init__(
        self,
        clock: Clock,
        open_sources: Callable[[Sequence[str]], AbstractContextManager[OpenedSources]],
        point_names: Callable[[], PointNames],
    ) -> None:
        self._clock = clock
        self._open_sources = open_sources
        self._point_names = point_names
        self._lock = threading.Lock()
        self._kept: dict[frozenset[str], tuple[float, JobInventory | ApplianceError]] = {}

    def meant(self, selection: VmSelection) -> MeantVms:
        """Raises: UsageError: no host is registered; of a lone host, why it failed."""
        inventory = self._inventory(tags_of([selection]))
        found = select_for_job(inventory, selection)
        return MeantVms(
            vms=tuple(map(_meant, found.vms)),
            vm_count=len(inventory.vms),
            reasons=found.reasons,
            failures=tuple((each.host, str(each.error)) for each in inventory.failures),
        )

    def _inventory(self, tags: frozenset[str]) -> JobInventory:
        with self._lock:
            known = self._kept.get(tags)
            if known is None or self._clock.monotonic_s() - known[0] > KEPT_S:
                found = self._asked(tags)
                newest = sorted(self._kept.items(), key=lambda item: -item[1][0])
                self._kept = dict(islice(newest, _KEPT_MOST - 1))
                known = self._kept[tags] = (self._clock.monotonic_s(), found)
        if isinstance(known[1], ApplianceError):
            raise known[1]
        return known[1]

    def _asked(self, tags: frozenset[str]) -> JobInventory | ApplianceError:
        """A failure is kept like an answer: it may have taken half a minute to come."""
        try:
            with self._open_sources(()) as opened:
                return read_inventory(opened.sources, tags, self._point_names(), opened.failures)
        except UsageError:  # no host is registered, which costs nothing to find out
            raise
        except ApplianceError as error:
            return error


def _meant(found: SelectedVm) -> MeantVm:
    return MeantVm(
        host=found.source.name,
        name=found.vm.name,
        path=vm_path(found.vm),
        point_name=found.point_name,
        has_points=found.has_points,
        size_bytes=found.vm.size_bytes,
        obstacles=found.vm.obstacles,
    )
