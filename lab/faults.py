"""Fault switches of the practice hypervisors: armed by a test, taken where the fault would happen.

A part of the lab that could fail asks `take(FaultName.X, vm=…, host=…)` at the very place where the
real product would go wrong and acts on the answer. Nothing happens unless somebody armed the
switch; which ones fired, and how often, can be read afterwards, so that a test can prove that its
fault was met.

Thread-safe; `take` is cheap while nothing is armed. The lab offers the same over its control
socket (`lab/fault_control.py`).
"""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase


class FaultName(StrEnum):
    """Every switch; `text` says what goes wrong, what `amount` means, and which fields match.

    Fields are those of the place that asks: `vm` (moref), `vm_name`, `host` (name, or "vcenter"),
    `disk` (device key), `path` (of the URL, decoded), `method` (HTTP or SOAP), `user`, `task`.
    """

    text: str

    def __new__(cls, value: str, text: str = "") -> FaultName:
        member = str.__new__(cls, value)
        member._value_ = value
        member.text = text
        return member

    # changed block tracking (vm, vm_name, disk)
    CBT_RESET = "cbt-reset", "tracking starts a new epoch: older changeIds get FileFault"
    CBT_MISSING_LIST = (
        "cbt-missing-list",
        "QueryChangedDiskAreas fails with FileFault, the tracking file is unreadable",
    )
    CBT_PARTIAL_LIST = (
        "cbt-partial-list",
        "QueryChangedDiskAreas leaves out the second half of what changed, without an error",
    )
    CBT_EMPTY_LIST = "cbt-empty-list", "QueryChangedDiskAreas says nothing changed, untruly"
    CBT_UNSORTED_LIST = "cbt-unsorted-list", "changed areas come in descending order"
    CBT_OVERLAPPING_LIST = "cbt-overlapping-list", "the first changed area comes twice"
    CBT_OUTSIDE_LIST = "cbt-outside-list", "an area reaches past the end of the disk"
    CBT_STUCK_PAGE = "cbt-stuck-page", "a page of length 0 that never ends"
    CBT_FOREIGN_CHANGE_ID = (
        "cbt-foreign-change-id",
        "the new snapshot shows a changeId of another epoch",
    )
    CBT_NO_CHANGE_ID = "cbt-no-change-id", "the new snapshot shows no changeId for the disk"
    CBT_ENABLE_IGNORED = (
        "cbt-enable-ignored",
        "ReconfigVM with changeTrackingEnabled succeeds and the disk stays untracked",
    )

    # snapshots (vm, vm_name)
    QUIESCE_FAILURE = "quiesce-failure", "a quiesced snapshot fails: ApplicationQuiesceFault"
    QUIESCE_HALF_MADE = (
        "quiesce-half-made",
        "a quiesced snapshot fails and leaves a snapshot of that name behind",
    )
    SNAPSHOT_FAILURE = "snapshot-failure", "CreateSnapshot fails: SnapshotFault"
    SNAPSHOT_STUCK = (
        "snapshot-stuck",
        "CreateSnapshot stays running for amount seconds (0: until cancelled)",
    )
    REMOVE_FAILURE = "remove-failure", "RemoveSnapshot fails: FileLocked, the snapshot stays"
    REMOVE_STUCK = "remove-stuck", "RemoveSnapshot stays running for amount seconds (0: for ever)"
    CONSOLIDATION_NEEDED = (
        "consolidation-needed",
        "RemoveSnapshot succeeds, the delta stays and runtime.consolidationNeeded is set",
    )
    CONSOLIDATION_LOCKED = "consolidation-locked", "ConsolidateVMDisks fails: FileLocked"

    # sessions, tasks and SOAP (method, user, vm where there is one)
    SESSION_DROP = (
        "session-drop",
        "the session of the call is ended: NotAuthenticated (method folder or rest: HTTP 401)",
    )
    LOST_TASK_REPLY = (
        "lost-task-reply",
        "the method is carried out and the connection closed before the answer",
    )
    TASK_FAILURE = "task-failure", "the task fails: SystemError (method is that of the task)"
    TASK_IN_PROGRESS = "task-in-progress", "the method is refused: TaskInProgress"
    SOAP_500 = "soap-500", "the SOAP call gets HTTP 500 with a text body that is no SOAP"
    SOAP_DELAY = "soap-delay", "the SOAP call is answered after amount seconds"
    PRIVILEGE_LOST = "privilege-lost", "the call is refused: NoPermission"

    # hosts and the data plane (host, method, path)
    SLOW_HOST = "slow-host", "every request waits amount seconds first"
    SLOW_STREAM = "slow-stream", "bodies are sent at amount bytes per second"
    DYING_HOST = "dying-host", "connections are reset before a byte is answered"
    HTTP_500 = "http-500", "the request gets 500"
    HTTP_503 = "http-503", "the request gets 503, the host has no streams left"
    HTTP_500_MID_STREAM = (
        "http-500-mid-stream",
        "after amount bytes of the body comes an error page inside it and the connection closes",
    )
    TRUNCATED_BODY = (
        "truncated-body",
        "the connection closes in order after amount bytes of the body",
    )
    RESET_MID_STREAM = "reset-mid-stream", "the connection is reset after amount bytes of the body"
    CORRUPT_BODY = "corrupt-body", "one byte at offset amount of the body is flipped, silently"
    RANGE_IGNORED = "range-ignored", "a Range request is answered 200 with the whole file"
    WRONG_RANGE = "wrong-range", "206 with a Content-Range 512 bytes past what was asked"
    TICKET_REFUSED = "ticket-refused", "a good ticket gets 401"
    DESCRIPTOR_STREAMS_DISK = (
        "descriptor-streams-disk",
        "a GET of x.vmdk sends the whole of x-flat.vmdk, as some servers do",
    )
    FILE_LOCKED = "file-locked", "the file counts as locked: 500"
    NO_SPACE = "no-space", "an upload fails: the datastore is full (507)"

    # leases (vm, vm_name, disk)
    LEASE_ERROR = "lease-error", "the lease goes from initializing to error"
    LEASE_STUCK = "lease-stuck", "the lease stays initializing"
    LEASE_EXPIRY = "lease-expiry", "the lease times out at the next progress call or transfer"
    LEASE_BAD_GRAIN = "lease-bad-grain", "one grain of the stream is not zlib"
    LEASE_WRONG_LBA = "lease-wrong-lba", "one grain marker names an LBA before the last one"
    LEASE_NO_FOOTER = "lease-no-footer", "the stream ends without footer and end-of-stream"

    # hot-add (vm of the appliance, disk path as `path`)
    HOT_ADD_NEVER_APPEARS = (
        "hot-add-never-appears",
        "the reconfigure succeeds and the guest never sees the device",
    )
    HOT_ADD_WRONG_DISK = "hot-add-wrong-disk", "another disk of the same size appears"
    HOT_REMOVE_FAILURE = "hot-remove-failure", "removing the device fails: the disk stays attached"

    # virtual machines (vm, vm_name)
    QUESTION = "question", "the next power-on blocks on a question (msg.uuid.altered)"
    POWER_ON_FAILURE = "power-on-failure", "PowerOn fails: GenericVmConfigFault"
    TOOLS_SILENT = "tools-silent", "guest tools never report, though the guest runs"
    RELOCATE_FAILURE = "relocate-failure", "RelocateVM fails half-way and leaves the VM as it was"
    NO_LIVE_MOVE = "no-live-move", "RelocateVM of a running VM is refused: NotEnoughLicenses"
    SCREEN_UNAVAILABLE = "screen-unavailable", "no screenshot can be taken"

    # the practice Hyper-V host (vm, vm_name). snapshot-*, quiesce-failure, remove-*, tools-silent,
    # power-on-failure and relocate-failure go for its machines, too; those of sessions and of SOAP
    # by host and method: the action and, for that of a script's command, `Receive:NAME`
    RCT_RESET = "rct-reset", "change tracking starts over at the checkpoint: older ids are unknown"
    RCT_EMPTY_ID = "rct-empty-id", "the reference point has an empty tracking id for its disks"
    RCT_QUERY_FAILURE = "rct-query-failure", "GetVirtualDiskChanges returns 32768"
    RCT_STUCK_REGION = "rct-stuck-region", "GetVirtualDiskChanges processes 0 bytes (path)"
    MERGE_FAILURE = "merge-failure", "the checkpoint goes, merging its file fails: in use"
    SMB_FILE_BUSY = (
        "smb-file-busy",
        ("the host keeps the frozen files (path) to itself for amount seconds (0: while they are)"),
    )
    SCRIPT_FAILURE = (
        "script-failure",
        "the script (method) ends with an exception it did not expect",
    )

    # inventory reads (vm, vm_name)
    MISSING_PROPERTY = "missing-property", "config of the VM comes in missingSet: NoPermission"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One armed switch as its taker sees it; `amount` is explained by the name's text."""

    name: FaultName
    amount: float
    match: tuple[tuple[str, str], ...]

    @property
    def whole_amount(self) -> int:
        """The amount where it counts bytes."""
        return int(self.amount)


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmedFault:
    """A switch that waits; `left` None means until it is disarmed."""

    fault: Fault
    left: int | None


class FaultSwitches:
    """What is armed and what fired. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._armed: list[ArmedFault] = []
        self._fired: Counter[FaultName] = Counter()
        self._changed = threading.Condition(self._lock)

    def arm(
        self,
        name: FaultName,
        times: int | None = 1,
        *,
        amount: float = 0.0,
        **match: str | int,
    ) -> None:
        """Let the next `times` places that ask for `name` fail (None: until disarmed).

        Every field of `match` is a shell pattern that the asking place's field of that name must
        fit; a place that does not know the field does not match.

        Raises:
            ValueError: `times` below 1, or a negative amount.
        """
        if times is not None and times < 1:
            raise ValueError(f"times {times} arms nothing")
        if amount < 0:
            raise ValueError(f"amount {amount} is negative")
        fields = tuple(sorted((key, str(value)) for key, value in match.items()))
        fault = Fault(name=name, amount=amount, match=fields)
        with self._lock:
            self._armed.append(ArmedFault(fault=fault, left=times))

    def take(self, name: FaultName, **fields: str | int) -> Fault | None:
        """Return the first armed fault of `name` that fits and use it up once; else None."""
        if not self._armed:
            return None
        with self._lock:
            for place, armed in enumerate(self._armed):
                if armed.fault.name is not name or not _fits(armed.fault, fields):
                    continue
                self._use_up(place, armed)
                self._fired[name] += 1
                self._changed.notify_all()
                return armed.fault
        return None

    def _use_up(self, place: int, armed: ArmedFault) -> None:
        if armed.left is None:
            return
        if armed.left == 1:
            del self._armed[place]
        else:
            self._armed[place] = ArmedFault(fault=armed.fault, left=armed.left - 1)

    def disarm(self, name: FaultName | None = None) -> int:
        """Forget what is armed under `name` (None: everything); return how many switches."""
        with self._lock:
            kept = [armed for armed in self._armed if name not in (None, armed.fault.name)]
            removed = len(self._armed) - len(kept)
            self._armed = kept
        return removed

    def armed(self) -> list[ArmedFault]:
        with self._lock:
            return list(self._armed)

    def fired(self, name: FaultName) -> int:
        """How often `name` was taken since the lab started."""
        with self._lock:
            return self._fired[name]

    def wait_fired(self, name: FaultName, count: int = 1, *, timeout_s: float = 30.0) -> bool:
        """Block until `name` fired `count` times; False when the time ran out."""
        with self._changed:
            return self._changed.wait_for(lambda: self._fired[name] >= count, timeout_s)


def _fits(fault: Fault, fields: dict[str, str | int]) -> bool:
    return all(
        key in fields and fnmatchcase(str(fields[key]), pattern) for key, pattern in fault.match
    )
