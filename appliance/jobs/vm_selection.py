"""Which VMs a command means: names, globs and tags over the inventories of the registered hosts.

A name is matched as the VM is called now, or as its recovery points are, which decides between VMs
of one name; a glob (`*`, `?`, `[…]`)
as the VM is called now, with its folder when the glob has a slash. A tag selects all that carry
it; with names beside it, those of the names that do.

A VM that is named must be found, be the only one, and be one that can be backed up. What a glob or
a tag finds beyond that is left out with a reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from appliance.base.errors import ApplianceError, SourceError, UsageError
from appliance.sources.contract import SourceVm, VmNotFoundError, VmSource
from appliance.sources.vm_identity import PointNames

_GLOB = frozenset("*?[")


class AmbiguousVmError(UsageError):
    """Several VMs have this name. Say which: `--host`, or the folder as `FOLDER/NAME`."""

    code = "source.vm-ambiguous"


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectedVm:
    source: VmSource
    vm: SourceVm
    point_name: str
    has_points: bool  # under `point_name`
    named: bool = False  # by its name, not by a glob or tag


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFailure:
    """A host whose inventory could not be read, so that nobody knows what of it was meant."""

    host: str
    error: ApplianceError


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    vms: tuple[SelectedVm, ...]
    failures: tuple[HostFailure, ...] = ()


def select_vms(
    sources: Sequence[VmSource],
    patterns: Sequence[str],
    tags: Sequence[str],
    names: PointNames,
    unasked: Sequence[HostFailure] = (),
) -> Selection:
    """Pick VMs, each once, in the order of the patterns.

    `unasked` are hosts that could not even be logged in to; they count as failures too.

    Raises: VmNotFoundError, AmbiguousVmError, UsageError: nothing at all is to be backed up.
    """
    if not patterns and not tags:
        raise UsageError("name at least one VM, glob or tag")
    inventory: list[SelectedVm] = []
    failures = list(unasked)
    for source in sources:
        try:
            inventory += _inventory(source, tags, names)
        except SourceError as error:
            failures.append(HostFailure(host=source.name, error=error))
    picked: dict[tuple[str, str], SelectedVm] = {}
    for pattern in patterns or ("*",):
        for found in _matching(inventory, pattern, complete=not failures):
            picked.setdefault((found.source.name, found.vm.key), found)
    return Selection(vms=tuple(picked.values()), failures=tuple(failures))


def _inventory(source: VmSource, tags: Sequence[str], names: PointNames) -> list[SelectedVm]:
    vms = source.list_vms()
    if tags:
        keys = frozenset[str]().union(*(source.keys_with_tag(tag) for tag in tags))
        vms = [vm for vm in vms if vm.key in keys]
    return [
        SelectedVm(
            source=source,
            vm=vm,
            point_name=names.name_for(vm.identity, vm.name, source.name),
            has_points=names.newest_of(vm.identity) is not None,
        )
        for vm in vms
    ]


def _matching(inventory: list[SelectedVm], pattern: str, *, complete: bool) -> list[SelectedVm]:
    exact = [found for found in inventory if pattern in _names(found)]
    if len(exact) > 1:
        kept = [found for found in exact if found.has_points and found.point_name == pattern]
        exact = kept or exact
    if len(exact) > 1:
        where = ", ".join(f"{found.source.name}: {vm_path(found.vm)}" for found in exact)
        raise AmbiguousVmError(f"{len(exact)} VMs are called {pattern!r} ({where})")
    if exact:
        return [replace(exact[0], named=True)]
    if _GLOB & set(pattern):
        matching = [
            found for found in inventory if fnmatchcase(_subject(found.vm, pattern), pattern)
        ]
        if matching:
            return matching
    if not complete:
        return []  # it may be on the host that does not answer; that is reported
    raise VmNotFoundError(f"no VM matches {pattern!r}")


def _names(found: SelectedVm) -> tuple[str, str, str]:
    return found.vm.name, found.point_name if found.has_points else "", vm_path(found.vm)


def vm_path(vm: SourceVm) -> str:
    """The VM with its folder, as the operator writes it."""
    return f"{vm.folder.rstrip('/')}/{vm.name}" if vm.folder else vm.name


def _subject(vm: SourceVm, pattern: str) -> str:
    return vm_path(vm) if "/" in pattern else vm.name
