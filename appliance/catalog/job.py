"""Saved jobs: what is to be done to which VMs, under which policy.

Each kind of job is a model of its own, told apart by `kind`; a new kind is a class here, a member
of `RunKind` and a runner (`jobs/engine.py`). Selections are matched against the inventory anew in
each run (`jobs/job_selection.py`), so new VMs join by themselves.

Thread model: values.
"""

from __future__ import annotations

from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Annotated, Literal, Self

from pydantic import Field, TypeAdapter, model_validator

from appliance.catalog.policy import Name
from appliance.catalog.schedule import Strict
from appliance.catalog.vm_checks import Checks, Group, VmChecks, Where

_Pattern = Annotated[str, Field(min_length=1, max_length=512)]
_Patterns = Annotated[tuple[_Pattern, ...], Field(max_length=1000)]


class RunKind(StrEnum):
    """What a run does. A backup is followed by a retention run of the same job."""

    BACKUP = "backup"
    RETENTION = "retention"
    GC = "gc"
    CHECK = "check"
    CBT_AUDIT = "cbt-audit"
    VERIFICATION = "verification"


class Exclusion(Strict):
    names: _Patterns = ()
    folders: _Patterns = ()
    tags: _Patterns = ()

    @property
    def empty(self) -> bool:
        return not (self.names or self.folders or self.tags)


class VmSelection(Strict):
    """VMs that any of names, folders, tags and runs_on means, or everything, on these hosts."""

    names: _Patterns = ()  # as called now or as their points are; globs; FOLDER/NAME
    folders: _Patterns = ()  # with all folders in them; globs
    tags: _Patterns = ()  # NAME or CATEGORY/NAME
    runs_on: _Patterns = ()  # the machine (ESXi host) that runs them; globs
    everything: bool = False
    hosts: tuple[_Pattern, ...] = Field(default=(), max_length=100)  # registered ones; none: all
    exclude: Exclusion = Exclusion()

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        some = self.names or self.folders or self.tags or self.runs_on
        if not some and not self.everything:
            raise ValueError("select by names, folders, tags or runs_on, or set everything = true")
        if some and self.everything:
            raise ValueError("everything = true leaves nothing to select by")
        return self


class PointSelection(Strict):
    """VMs by the name that their recovery points are kept under; globs; none: all."""

    names: _Patterns = ("*",)
    exclude: _Patterns = ()


class _Base(Strict):
    name: Name
    policy: Name | None = None  # none: only by hand, nothing removed
    enabled: bool = True


class BackupJob(_Base):
    kind: Literal[RunKind.BACKUP] = RunKind.BACKUP
    select: VmSelection


class CbtAuditJob(_Base):
    """A backup that reads a large share of what is reported unchanged again."""

    kind: Literal[RunKind.CBT_AUDIT] = RunKind.CBT_AUDIT
    select: VmSelection
    percent: float = Field(default=10.0, gt=0, le=100)


class RetentionJob(_Base):
    kind: Literal[RunKind.RETENTION] = RunKind.RETENTION
    select: PointSelection = PointSelection()


class GcJob(_Base):
    kind: Literal[RunKind.GC] = RunKind.GC
    wait_minutes: int = Field(default=0, ge=0, le=24 * 60)  # for backups that began before


class CheckJob(_Base):
    kind: Literal[RunKind.CHECK] = RunKind.CHECK
    read_data: bool = False


class VerificationJob(_Base, Checks):
    """Proves the newest point of every VM that it covers; new VMs join with their first point."""

    kind: Literal[RunKind.VERIFICATION] = RunKind.VERIFICATION
    select: PointSelection = PointSelection()
    where: Where = Where.SANDBOX
    host: _Pattern | None = None  # registered one to boot on; none: the only one
    address: str = Field(default="", max_length=256)  # where hosts reach us; none: found out
    hash_share: float = Field(default=0.0, ge=0, le=1)  # of the chunks, read and proven
    check_file_systems: bool = False
    vms: Annotated[tuple[VmChecks, ...], Field(max_length=1000)] = ()  # the first that fits counts
    groups: Annotated[tuple[Group, ...], Field(max_length=1000)] = ()

    @model_validator(mode="after")
    def _proves_something(self) -> Self:
        if (
            self.where is Where.SANDBOX
            and not (self.probes or self.hash_share or self.check_file_systems)
            and not any(entry.probes for entry in self.vms)
        ):
            raise ValueError(
                "give probes, hash_share or check_file_systems, else nothing is proven"
            )
        members = [name for group in self.groups for name in group.order]
        twice = next((name for name in members if members.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"groups: {twice!r} is named twice")
        return self

    def checks_of(self, vm: str) -> Checks:
        """What is asked of the VM whose points are called so."""
        own = Checks(**{name: getattr(self, name) for name in Checks.model_fields})
        for entry in self.vms:
            if any(fnmatchcase(vm, pattern) for pattern in entry.names):
                return entry.over(own)
        return own


Job = Annotated[
    BackupJob | CbtAuditJob | RetentionJob | GcJob | CheckJob | VerificationJob,
    Field(discriminator="kind"),
]
JOB: TypeAdapter[Job] = TypeAdapter(Job)
