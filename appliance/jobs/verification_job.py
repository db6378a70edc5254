"""A verification job as plans: which points, where, in which order, what must answer. Pure.

The newest point of every VM whose points are called as the job selects, and of every member of its
groups. A group is one plan: its guests boot in order, each when the one before is ready. What of
the job cannot be done for a VM is told with a reason and is never left out in silence.

Thread model: functions over values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from appliance.base.errors import UsageError
from appliance.base.reasons import Reason
from appliance.base.units import parse_duration
from appliance.catalog.job import VerificationJob
from appliance.catalog.policy import Policy
from appliance.catalog.vm_checks import Checks, Group, Where
from appliance.jobs.verification_plan import BootOptions, GuestPlan, Place, VerificationPlan
from appliance.repository.manifest import Manifest
from appliance.sandbox.probes import PingProbe, parse_probe
from appliance.sandbox.serial_script import parse_script
from appliance.sandbox.spec import DiskInterface

NO_PROBE = Reason(
    "verify.no-probe",
    "the VM was not booted in the sandbox: no probe of it would say that it works",
    "give the job a probe for it, such as tcp:22, or boot it on the hypervisor",
)
NO_POINT = Reason(
    "verify.no-point",
    "the VM is named by the job and has no recovery point",
    "back it up first, or take it out of the job",
)
NOTHING_COVERED = Reason(
    "verify.nothing-covered",
    "the job means no VM that has a recovery point",
    "look at its selection; `holdfast point list` shows what points are called",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """What is verified as one: a VM by itself, or the VMs of a group."""

    name: str
    place: Place
    plan: VerificationPlan
    reasons: Mapping[str, tuple[Reason, ...]]  # by VM: what was asked and is not done


@dataclass(frozen=True, slots=True, kw_only=True)
class JobPlan:
    units: tuple[Unit, ...]
    without_point: tuple[str, ...]  # VMs of groups, or named without a glob

    @property
    def guest_count(self) -> int:
        """A VM that is booted in two places counts twice."""
        return sum(len(unit.plan.guests) for unit in self.units)


def check_verification_job(job: VerificationJob) -> None:
    """Raises UsageError, naming the field: a probe or a script is none."""
    where = f"job.{job.name}"
    _parse(f"{where}", job.probes, job.scripts)
    for number, entry in enumerate(job.vms):
        _parse(f"{where}.vms[{number}]", entry.probes or (), entry.scripts or ())


def plan_job(
    job: VerificationJob,
    policy: Policy,
    newest: Mapping[str, Manifest],
    done: frozenset[str] = frozenset(),
) -> JobPlan:
    """`newest`: the newest point of each VM; `done`: VMs that an earlier attempt has proven.

    Raises UsageError: a probe cannot be understood, which saving the job would have refused.
    """
    grouped = {vm for group in job.groups for vm in group.order}
    alone = [
        vm for vm in sorted(newest) if vm not in grouped and vm not in done and _selects(job, vm)
    ]
    units: list[Unit] = []
    for place in _places(job.where):
        for group in job.groups:
            if not done.issuperset(group.order):
                units += _group_unit(job, policy, group, newest, place)
        units += [_unit(job, policy, vm, [newest[vm]], place) for vm in alone]
    named = [name for name in job.select.names if not set(name) & set("*?[")]
    lost = [vm for vm in (*sorted(grouped), *named) if vm not in newest]
    return JobPlan(units=tuple(units), without_point=tuple(dict.fromkeys(lost)))


def _places(where: Where) -> tuple[Place, ...]:
    if where is Where.BOTH:
        return (Place.SANDBOX, Place.HYPERVISOR)
    return (Place(where.value),)


def _selects(job: VerificationJob, vm: str) -> bool:
    select = job.select
    return any(fnmatchcase(vm, pattern) for pattern in select.names) and not any(
        fnmatchcase(vm, pattern) for pattern in select.exclude
    )


def _group_unit(
    job: VerificationJob,
    policy: Policy,
    group: Group,
    newest: Mapping[str, Manifest],
    place: Place,
) -> Iterator[Unit]:
    there = [newest[vm] for vm in group.order if vm in newest]
    if there:
        yield _unit(job, policy, group.name, there, place)


def _unit(
    job: VerificationJob, policy: Policy, name: str, points: Sequence[Manifest], place: Place
) -> Unit:
    """Each guest waits for the one before it; one that cannot be booted is waited for by none."""
    guests: list[GuestPlan] = []
    reasons: dict[str, tuple[Reason, ...]] = {}
    before: tuple[str, ...] = ()
    for manifest in points:
        guest = _guest(job, policy, manifest, place, before)
        guests.append(guest)
        if guest.boot is not None:
            before = (manifest.vm,)
        elif place is Place.SANDBOX and _boots(job):
            reasons[manifest.vm] = (NO_PROBE,)
    return Unit(
        name=name, place=place, plan=VerificationPlan(guests=tuple(guests)), reasons=reasons
    )


def _boots(job: VerificationJob) -> bool:
    """Whether the job means to boot anything in the sandbox."""
    return bool(job.probes) or any(entry.probes for entry in job.vms)


def _guest(
    job: VerificationJob,
    policy: Policy,
    manifest: Manifest,
    place: Place,
    before: tuple[str, ...],
) -> GuestPlan:
    checks = job.checks_of(manifest.vm)
    probes = tuple(map(parse_probe, checks.probes))
    proving = any(not isinstance(probe, PingProbe) for probe in probes)
    boots = place is Place.HYPERVISOR or proving
    content = place is Place.SANDBOX or job.where is Where.HYPERVISOR  # of a point, proven once
    return GuestPlan(
        point=f"latest:{manifest.vm}",  # when its turn comes
        name=manifest.vm,
        boot=_boot_options(checks, place) if boots else None,
        probes=probes if boots else (),
        scripts=tuple(map(parse_script, checks.scripts)) if boots else (),
        after=before if boots else (),
        hash_share=job.hash_share if content else 0.0,
        check_file_systems=job.check_file_systems and content,
        rto=policy.recovery_time,
        rpo=policy.point_age,
    )


def _boot_options(checks: Checks, place: Place) -> BootOptions:
    return BootOptions(
        place=place,
        memory_mib=checks.memory_mib,
        cpus=checks.cpus,
        disk_interface=DiskInterface(checks.disk_interface),
        deadline_s=parse_duration(checks.timeout).total_seconds(),
    )


def _parse(where: str, probes: Sequence[str], scripts: Sequence[str]) -> None:
    for field, texts, parse in (
        ("probes", probes, parse_probe),
        ("scripts", scripts, parse_script),
    ):
        for text in texts:
            try:
                parse(text)
            except UsageError as error:
                raise UsageError(f"{where}.{field}: {error}") from None
