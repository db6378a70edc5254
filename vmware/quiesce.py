"""The quiesce ladder: which attempts a snapshot gets, and what a finished one is worth.

    application -> application again after 60 s -> file system -> crash, if the policy allows it

Pure: it decides from the state of the guest, and says what it decided. A rung is what is asked for;
the `Consistency` is what was true. vSphere ignores a wish to quiesce when the VM is off or its
tools do not run, so the wish proves nothing: the snapshot's own `quiesced` flag does, and for
application consistency the manifest that the VSS writers leave. On Linux the tools freeze the file
systems (running the freeze scripts, if there are any), so that is what is recorded.

Source: vSphere API reference, CreateSnapshotEx_Task, GuestQuiesceSpec, WindowsQuiesceSpec;
Microsoft, VSS_BACKUP_TYPE.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Any

from pyVmomi import vim

from vmware.findings import Finding, Weight

_TOOLS_RUN = "guestToolsRunning"


class Consistency(StrEnum):
    """What was true when the disks were frozen, not what was asked for."""

    CRASH = "crash"
    FILE_SYSTEM = "file-system"
    APPLICATION = "application"
    OFFLINE = "offline"


class Rung(IntEnum):
    """What a snapshot is asked for; lower asks for less."""

    CRASH = 0
    FILE_SYSTEM = 1
    APPLICATION = 2


class VssBackupType(IntEnum):
    FULL = 1  # lets writers truncate their logs
    COPY = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Ladder:
    """From where to where the attempts go down. Raises ValueError: upside down, or out of range."""

    top: Rung = Rung.APPLICATION
    bottom: Rung = Rung.CRASH
    retry_after_s: float = 60.0
    freeze_timeout_minutes: int = 15
    backup_type: VssBackupType = VssBackupType.COPY

    def __post_init__(self) -> None:
        if self.bottom > self.top:
            raise ValueError(f"a ladder from {self.top.name} up to {self.bottom.name}")
        if not 5 <= self.freeze_timeout_minutes <= 240:
            raise ValueError(f"a freeze time-out of {self.freeze_timeout_minutes} minutes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    rung: Rung
    pause_s: float = 0.0  # before it


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestState:
    power: str  # poweredOn, poweredOff, suspended
    tools: str | None  # guest.toolsRunningStatus
    windows: bool


def attempts(ladder: Ladder, guest: GuestState) -> tuple[tuple[Attempt, ...], tuple[Finding, ...]]:
    """The attempts in order, and why they are fewer than the ladder's; () when none may be made."""
    unable = _cannot_quiesce(guest)
    if ladder.top is Rung.CRASH or guest.power == "poweredOff":
        return (Attempt(rung=Rung.CRASH),), ()
    if unable is not None:
        return ((Attempt(rung=Rung.CRASH),) if ladder.bottom is Rung.CRASH else ()), (unable,)
    tries = [Attempt(rung=ladder.top), Attempt(rung=ladder.top, pause_s=ladder.retry_after_s)]
    tries += [Attempt(rung=Rung(n)) for n in range(ladder.top - 1, ladder.bottom - 1, -1)]
    if not guest.windows:  # its file-system rung would ask for the very same thing again
        tries = [t for t in tries if t.rung is not Rung.FILE_SYSTEM or ladder.top is t.rung]
    return tuple(tries), ()


def _cannot_quiesce(guest: GuestState) -> Finding | None:
    if guest.power == "suspended":
        return Finding(
            "snapshot.suspended",
            "the VM is suspended, so its file systems cannot be brought to rest",
            "resume it or shut it down before the backup if that matters",
        )
    if guest.tools != _TOOLS_RUN:
        return Finding(
            "snapshot.tools-not-running",
            "VMware Tools do not run in the guest, so it cannot be brought to rest",
            "install or start VMware Tools (open-vm-tools on Linux)",
        )
    return None


def quiesce_spec(ladder: Ladder, rung: Rung, *, windows: bool) -> Any:
    """The `vim.vm.GuestQuiesceSpec` for a rung; None for the crash-consistent one."""
    if rung is Rung.CRASH:
        return None
    if not windows:
        return vim.vm.GuestQuiesceSpec(timeout=ladder.freeze_timeout_minutes)
    with_writers = rung is Rung.APPLICATION
    return vim.vm.WindowsQuiesceSpec(
        timeout=ladder.freeze_timeout_minutes,
        vssBackupType=int(ladder.backup_type),
        vssBootableSystemState=with_writers,
        vssPartialFileSupport=False,
        vssBackupContext="ctx_backup" if with_writers else "ctx_file_share_backup",
    )


def judge(
    rung: Rung, guest: GuestState, *, quiesced: bool, backup_manifest: str | None
) -> tuple[Consistency, tuple[Finding, ...]]:
    """What a snapshot that was asked for with `rung` is worth, and why it is not worth more."""
    if guest.power == "poweredOff":
        return Consistency.OFFLINE, ()
    if rung is Rung.CRASH:
        return Consistency.CRASH, ()
    if not quiesced:
        return Consistency.CRASH, (
            Finding(
                "snapshot.not-quiesced",
                "the snapshot was made, but the guest was not brought to rest",
                "look at VMware Tools in the guest",
            ),
        )
    if rung is Rung.FILE_SYSTEM:
        return Consistency.FILE_SYSTEM, ()
    if not guest.windows:
        return Consistency.FILE_SYSTEM, (
            Finding(
                "snapshot.scripts-unknown",
                "the file systems were frozen; whether freeze scripts brought applications to rest "
                "cannot be seen from outside",
                "put freeze and thaw scripts into the guest for its applications",
                Weight.NOTE,
            ),
        )
    if backup_manifest is None:
        return Consistency.FILE_SYSTEM, (
            Finding(
                "snapshot.no-writer-manifest",
                "the guest was frozen, but its VSS writers left no manifest, so applications may "
                "not have taken part",
                "check `vssadmin list writers` in the guest, SCSI disks and disk.EnableUUID",
            ),
        )
    return Consistency.APPLICATION, ()
