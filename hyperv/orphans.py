"""What dead runs left on a Hyper-V host: found by marker, removed; nothing of others is touched.

Recovery checkpoints carry the marker as their name, shadow copies as the name of their folder,
shares as their description, unfinished VMs in their notes; of disk files the host keeps a list by
marker. Reference points cannot carry one: whoever wrote their ids down (the appliance's journal)
decides about them. What an instant recovery session made is the session's to remove.

Thread model: functions; they block; one at a time per appliance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from hyperv.checkpoints import list_checkpoints, remove_checkpoint
from hyperv.disk_files import list_disk_files, remove_disk_files
from hyperv.errors import HypervError
from hyperv.host_session import HostSession
from hyperv.inventory import list_vms
from hyperv.marker import Marker, prefix
from hyperv.new_vm import remove as remove_vm
from hyperv.patience import Patience
from hyperv.shadows import list_shadows, remove_shadow
from hyperv.shares import list_shares, unshare


class Kind(StrEnum):
    CHECKPOINT = "recovery checkpoint"
    SHADOW = "shadow copy"
    VM = "unfinished VM"
    DISK_FILES = "disk files"
    SHARE = "share"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Something that carries a marker of this appliance."""

    kind: Kind
    marker: Marker
    id: str  # of the checkpoint; the marker's text of others
    vm_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    found: Found
    failure: str = ""  # empty: it is gone


def look(host: HostSession, appliance_id: str, patience: Patience) -> list[Found]:
    """Return everything of this appliance, of living runs too, in the order in which it has to be
    removed. Raises HypervError."""
    found: list[Found] = []
    for checkpoint in list_checkpoints(host, "", patience):
        marker = Marker.parse(checkpoint.name)
        if marker and marker.appliance_id == appliance_id and checkpoint.kind == "recovery":
            found.append(
                Found(kind=Kind.CHECKPOINT, marker=marker, id=checkpoint.id, vm_id=checkpoint.vm_id)
            )
    for vm in list_vms(host, patience):
        for word in vm.notes.split():
            marker = Marker.parse(word)
            if marker and marker.appliance_id == appliance_id and not marker.is_of_session:
                found.append(Found(kind=Kind.VM, marker=marker, id=word, vm_id=vm.id))
    marked = [
        *(
            (Kind.SHADOW, shadow.marker)
            for shadow in list_shadows(host, prefix(appliance_id), patience)
        ),
        *(
            (Kind.DISK_FILES, text)
            for text in list_disk_files(host, prefix(appliance_id), patience)
        ),
        *((Kind.SHARE, text) for text in list_shares(host, prefix(appliance_id), patience)),
    ]
    for kind, text in marked:
        marker = Marker.parse(text)
        if marker and marker.appliance_id == appliance_id:
            found.append(Found(kind=kind, marker=marker, id=text))
    return found


def remove(
    host: HostSession, found: list[Found], is_dead: Callable[[str], bool], patience: Patience
) -> list[Outcome]:
    """Remove what belongs to dead runs; one failure stops no other. Never raises HypervError."""
    outcomes = []
    for thing in found:
        if not is_dead(thing.marker.run_id):
            continue
        try:
            _remove(host, thing, patience)
            outcomes.append(Outcome(found=thing))
        except HypervError as error:
            outcomes.append(Outcome(found=thing, failure=f"[{error.code}] {error}"))
    return outcomes


def _remove(host: HostSession, thing: Found, patience: Patience) -> None:
    if thing.kind is Kind.CHECKPOINT:
        remove_checkpoint(host, thing.vm_id, thing.id, patience)
    elif thing.kind is Kind.SHADOW:
        remove_shadow(host, thing.id, patience)
    elif thing.kind is Kind.VM:
        remove_vm(host, thing.vm_id, thing.id, patience)
    elif thing.kind is Kind.DISK_FILES:
        remove_disk_files(host, thing.id, patience)
    else:
        unshare(host, thing.id, patience)
