"""Which VMs a saved job means today: its selection, matched against the inventories anew.

Unlike `vm_selection`, where a person names VMs and a wrong name is an error, a job goes on: what a
name no longer finds is a warning, and new VMs join by themselves. A VM that is named without a
glob must be one that can be backed up; what globs, folders, tags and hosts bring beyond that is
left out with a reason.

Matching is pure; `read_inventory` asks the hosts.

Thread model: values; `read_inventory` blocks.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from appliance.base.errors import SourceError
from appliance.base.reasons import Reason
from appliance.catalog.job import VmSelection
from appliance.jobs.vm_selection import HostFailure, SelectedVm, vm_path
from appliance.sources.contract import SourceVm, VmSource
from appliance.sources.listed_vm import OF_VERIFICATION
from appliance.sources.vm_identity import PointNames

_GLOB = frozenset("*?[")


@dataclass(frozen=True, slots=True, kw_only=True)
class InventoryVm:
    vm: SelectedVm
    tags: frozenset[str]  # those of the tags asked for that it carries, as asked for


@dataclass(frozen=True, slots=True, kw_only=True)
class JobInventory:
    vms: tuple[InventoryVm, ...]
    failures: tuple[HostFailure, ...] = ()  # hosts of which nobody knows what they have


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSelection:
    vms: tuple[SelectedVm, ...]
    reasons: tuple[Reason, ...] = ()


def read_inventory(
    sources: Sequence[VmSource],
    tags: Iterable[str],
    names: PointNames,
    unasked: Sequence[HostFailure] = (),
) -> JobInventory:
    """Ask every host once, and once per tag. A host that fails stops no other.

    VMs of verifications are no VMs of anybody's and left out.
    """
    wanted = sorted(set(tags))
    vms: list[InventoryVm] = []
    failures = list(unasked)
    for source in sources:
        try:
            found = _ask(source, wanted, names)
            vms += [one for one in found if OF_VERIFICATION not in one.vm.vm.obstacles]
        except SourceError as error:
            failures.append(HostFailure(host=source.name, error=error))
    return JobInventory(vms=tuple(vms), failures=tuple(failures))


def tags_of(selections: Iterable[VmSelection]) -> frozenset[str]:
    """The tags that one must know to match these."""
    return frozenset(tag for each in selections for tag in (*each.tags, *each.exclude.tags))


def select_for_job(inventory: JobInventory, selection: VmSelection) -> JobSelection:
    """Pick the VMs that the selection means, in the order of the inventory."""
    chosen = [found for found in inventory.vms if selects(selection, found)]
    named = {name for name in selection.names if not _GLOB & set(name)}
    reasons = []
    if not inventory.failures:  # else it may be on the host that does not answer
        missing = [
            pattern
            for pattern in selection.names
            if not any(_is_named(found.vm, pattern) for found in inventory.vms)
        ]
        reasons = [_not_found(pattern) for pattern in missing]
    if not chosen and not inventory.failures:
        reasons.append(
            Reason(
                "select.nothing",
                "the selection of the job means no VM that there is",
                "change the job's selection, or remove the job",
            )
        )
    return JobSelection(
        vms=tuple(
            replace(found.vm, named=any(_is_named(found.vm, name) for name in named))
            for found in chosen
        ),
        reasons=tuple(reasons),
    )


def selects(selection: VmSelection, found: InventoryVm) -> bool:
    """Whether the selection means this VM."""
    vm = found.vm
    if selection.hosts and vm.source.name not in selection.hosts:
        return False
    excluded = selection.exclude
    if _means(vm, found.tags, excluded.names, excluded.folders, excluded.tags):
        return False
    return (
        selection.everything
        or _means(vm, found.tags, selection.names, selection.folders, selection.tags)
        or any(fnmatchcase(vm.vm.host, pattern) for pattern in selection.runs_on)
    )


def _means(
    vm: SelectedVm,
    carried: frozenset[str],
    names: Sequence[str],
    folders: Sequence[str],
    tags: Collection[str],
) -> bool:
    return (
        any(_is_named(vm, pattern) for pattern in names)
        or any(_is_in(vm.vm, pattern) for pattern in folders)
        or not carried.isdisjoint(tags)
    )


def _is_named(vm: SelectedVm, pattern: str) -> bool:
    path = vm_path(vm.vm)
    if pattern in (vm.vm.name, path, vm.point_name):
        return True
    return fnmatchcase(path if "/" in pattern else vm.vm.name, pattern)


def _is_in(vm: SourceVm, pattern: str) -> bool:
    """Whether the VM lies in the folder or in one beneath it.

    A pattern with a slash is the whole path of a folder, one without is a folder's own name.
    """
    parts = vm.folder.strip("/").split("/")
    wanted = pattern.strip("/")
    if "/" in wanted:
        paths = ("/".join(parts[: depth + 1]) for depth in range(len(parts)))
        return any(fnmatchcase(path, wanted) for path in paths)
    return any(fnmatchcase(part, wanted) for part in parts)


def _ask(source: VmSource, tags: Sequence[str], names: PointNames) -> list[InventoryVm]:
    listed = source.list_vms()
    carriers = {tag: source.keys_with_tag(tag) for tag in tags}
    return [
        InventoryVm(
            vm=SelectedVm(
                source=source,
                vm=vm,
                point_name=names.name_for(vm.identity, vm.name, source.name),
                has_points=names.newest_of(vm.identity) is not None,
            ),
            tags=frozenset(tag for tag, keys in carriers.items() if vm.key in keys),
        )
        for vm in listed
    ]


def _not_found(pattern: str) -> Reason:
    return Reason(
        "select.not-found",
        f"no VM is called or matches {pattern!r}",
        "correct the job's selection, or take the name out of it",
    )
