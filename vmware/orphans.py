"""Debris of dead runs: found by our marks, removed in the right order, nobody else's ever touched.

    look -> plan (what is ours, and whose run is dead) -> execute (disks off, snapshots, VMs)

| thing | it is ours because |
|---|---|
| a disk on the appliance VM | an attach intent names its place and file |
| the same, without an intent | it hangs there nonpersistently, from a file such a snapshot froze |
| a snapshot | its description is a marker of this appliance |
| a VM | its annotation is such a marker for restoring, bound to this VM's instance uuid |

and because the run that made it is dead, which the caller knows. NFC leases need no clean-up: they
end with the session that took them.

Whether a run is alive is asked after looking, so a run that began meanwhile is not mistaken for a
dead one. Execution looks at each thing again before it removes it, so a plan may be old, and every
step may be repeated after a crash. A snapshot whose disk still hangs on the appliance is left for
the next time: removed now, its redo log would stay.

Source: design notes section 3 (crash clean-up).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from pyVmomi import vim

from vmware.disks import disks_of, split_file_name
from vmware.errors import ObjectGoneError, RefusedError, VsphereError
from vmware.findings import Finding
from vmware.marker import Marker, Purpose, parse_marker
from vmware.patience import Patience
from vmware.properties import Fetched, Wanted, fetch_all, fetch_one
from vmware.session import Session
from vmware.snapshot_tree import SnapshotEntry, flatten
from vmware.snapshots import remove_snapshot
from vmware.tasks import wait_for_task
from vmware.transports.appliance_disks import ApplianceDisks, DiskMode
from vmware.transports.appliance_vm import find_appliance_vm
from vmware.transports.attach_intent import AttachIntent

DESTROY_DEADLINE_S = 1800.0

_VM_PATHS = ("name", "snapshot", "config.annotation", "config.instanceUuid")


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenSnapshot:
    vm_moref: str
    vm_name: str
    moref: str
    marker: Marker
    files: frozenset[str]  # that it froze


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenVm:
    moref: str
    name: str
    marker: Marker


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """Everything with our marks, whether its run lives or not."""

    disks: tuple[AttachIntent, ...]  # that hang on the appliance without being in the journal
    snapshots: tuple[SeenSnapshot, ...]
    vms: tuple[SeenVm, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class OrphanPlan:
    disks: tuple[AttachIntent, ...]
    snapshots: tuple[SeenSnapshot, ...]
    vms: tuple[SeenVm, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class OrphanOutcome:
    """What became of one thing; `failure` is empty when it is gone."""

    thing: AttachIntent | SeenSnapshot | SeenVm
    failure: str = ""
    findings: tuple[Finding, ...] = ()


def look(session: Session, appliance_id: str, disks: ApplianceDisks) -> Sight:
    """Read what carries this appliance's marks. Raises VsphereError."""
    snapshots: list[SeenSnapshot] = []
    vms: list[SeenVm] = []
    wanted = [Wanted(kind=vim.VirtualMachine, paths=_VM_PATHS)]
    for found in fetch_all(session, "look for what dead runs left", wanted):
        name = str(found.values.get("name", found.moref))
        marker = _marker_of_vm(found)
        if marker is not None and marker.appliance_id == appliance_id:
            vms.append(SeenVm(moref=found.moref, name=name, marker=marker))
        snapshots += [
            _seen_snapshot(session, found.moref, name, entry, entry.marker)
            for entry in flatten(found.values.get("snapshot"))
            if entry.marker is not None and entry.marker.appliance_id == appliance_id
        ]
    return Sight(
        disks=_unrecorded_disks(session, disks, snapshots) if snapshots else (),
        snapshots=tuple(snapshots),
        vms=tuple(vms),
    )


def plan_orphans(
    sight: Sight, intents: Sequence[AttachIntent], is_live: Callable[[str], bool]
) -> OrphanPlan:
    """What of it is to be removed. Pure, but for `is_live`, which is asked once per run."""
    runs = {intent.run_id for intent in (*intents, *sight.disks)}
    runs |= {seen.marker.run_id for seen in sight.snapshots}
    runs |= {seen.marker.run_id for seen in sight.vms}
    dead = {run for run in runs if not is_live(run)}
    disks = dict.fromkeys(intent for intent in intents if intent.run_id in dead)
    known = {(intent.appliance_moref, intent.slot) for intent in intents}
    for intent in sight.disks:
        if intent.run_id in dead and (intent.appliance_moref, intent.slot) not in known:
            disks[intent] = None
    return OrphanPlan(
        disks=tuple(disks),
        snapshots=tuple(seen for seen in sight.snapshots if seen.marker.run_id in dead),
        vms=tuple(seen for seen in sight.vms if seen.marker.run_id in dead),
    )


def remove_orphans(
    session: Session,
    plan: OrphanPlan,
    appliance_id: str,
    disks: ApplianceDisks,
    *,
    patience: Patience | None = None,
) -> tuple[OrphanOutcome, ...]:
    """Remove it all, each thing for itself: a failure is an outcome, and the rest goes on.

    Raises: CancelledError, between two things.
    """
    patience = patience or Patience()
    outcomes: list[OrphanOutcome] = []
    held: set[str] = set()  # files of disks that could not be detached
    for intent in plan.disks:
        patience.check()
        outcome = _attempt(intent, partial(disks.take_off, session, intent))
        if outcome.failure:
            held.add(intent.file_name)
        outcomes.append(outcome)
    for seen in plan.snapshots:
        patience.check()
        if seen.files & held:
            failure = f"its disk still hangs on the appliance: {', '.join(seen.files & held)}"
            outcomes.append(OrphanOutcome(thing=seen, failure=failure))
            continue
        outcomes.append(_remove_snapshot(session, seen, appliance_id, patience))
    for made in plan.vms:
        patience.check()
        outcomes.append(_attempt(made, partial(_destroy, session, made)))
    return tuple(outcomes)


def _attempt(
    thing: AttachIntent | SeenSnapshot | SeenVm, action: Callable[[], None]
) -> OrphanOutcome:
    try:
        action()
    except ObjectGoneError:
        return OrphanOutcome(thing=thing)
    except VsphereError as error:
        return OrphanOutcome(thing=thing, failure=str(error))
    return OrphanOutcome(thing=thing)


def _remove_snapshot(
    session: Session, seen: SeenSnapshot, appliance_id: str, patience: Patience
) -> OrphanOutcome:
    findings: tuple[Finding, ...] = ()

    def remove() -> None:
        nonlocal findings
        findings = remove_snapshot(
            session,
            seen.vm_moref,
            seen.moref,
            appliance_id=appliance_id,
            patience=patience.unstoppable(),
        ).findings

    failure = _attempt(seen, remove).failure
    return OrphanOutcome(thing=seen, failure=failure, findings=findings)


def _destroy(session: Session, seen: SeenVm) -> None:
    """Delete a VM under construction with its files; refuse if it is anything else by now."""
    vm = session.object(vim.VirtualMachine, seen.moref)
    what = f"remove the unfinished VM {seen.name}"
    paths = (
        "config.annotation",
        "config.instanceUuid",
        "config.template",
        "config.files.vmPathName",
        "config.hardware.device",
        "runtime.powerState",
        "snapshot",
    )
    found = fetch_one(session, what, vm, paths)
    values = found.values
    if _marker_of_vm(found) != seen.marker:
        raise RefusedError(f"{what}: it does not carry its mark any more")
    if str(values.get("runtime.powerState")) != "poweredOff" or values.get("config.template"):
        raise RefusedError(f"{what}: it runs, or is a template")
    home = _folder(str(values.get("config.files.vmPathName", "")))
    for disk in disks_of(values.get("config.hardware.device") or []):
        if any(_folder(name) != home for name in disk.chain or (disk.file_name,)):
            raise RefusedError(f"{what}: {disk.label} lies outside of its folder")
    task = session.call(what, vm.Destroy_Task)
    wait_for_task(session, task, what=what, deadline_s=DESTROY_DEADLINE_S)


def _folder(file_name: str) -> tuple[str, str]:
    datastore, path = split_file_name(file_name)
    return datastore, path.rpartition("/")[0]


def _marker_of_vm(found: Fetched) -> Marker | None:
    """The marker of a VM under construction; None for any other VM, a clone of one included."""
    marker = parse_marker(found.values.get("config.annotation"))
    if marker is None or marker.purpose is not Purpose.RESTORE or marker.subject is None:
        return None
    uuid = str(found.values.get("config.instanceUuid", ""))
    return marker if marker.subject.lower() == uuid.lower() else None


def _seen_snapshot(
    session: Session, vm_moref: str, vm_name: str, entry: SnapshotEntry, marker: Marker
) -> SeenSnapshot:
    snapshot = session.object(vim.vm.Snapshot, entry.moref)
    files: set[str] = set()
    try:
        what = f"look at snapshot {entry.moref}"
        read = fetch_one(session, what, snapshot, ("config.hardware.device",)).values
        for disk in disks_of(read.get("config.hardware.device") or []):
            files.update(name for name in disk.chain if name)
    except ObjectGoneError:
        pass  # removed meanwhile
    return SeenSnapshot(
        vm_moref=vm_moref,
        vm_name=vm_name,
        moref=entry.moref,
        marker=marker,
        files=frozenset(files),
    )


def _unrecorded_disks(
    session: Session, disks: ApplianceDisks, snapshots: Sequence[SeenSnapshot]
) -> tuple[AttachIntent, ...]:
    """Disks that hang on the appliance for reading, from files that our snapshots froze."""
    appliance = find_appliance_vm(session, disks.devices.product_uuid())
    if not isinstance(appliance, str):
        return ()
    found: list[AttachIntent] = []
    for attached in disks.attached(session, appliance):
        if attached.disk_mode != DiskMode.READ.value:
            continue
        for seen in snapshots:
            frozen = next((name for name in attached.files if name in seen.files), None)
            if frozen is not None:
                found.append(
                    AttachIntent(
                        run_id=seen.marker.run_id,
                        appliance_moref=appliance,
                        slot=attached.slot,
                        file_name=frozen,
                    )
                )
                break
    return tuple(found)
