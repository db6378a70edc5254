"""Check the file systems of a guest with their own checkers: confined children, bounded time.

    read_volumes (ours) -> volume_file -> e2fsck | ntfsfix | fsck.vfat | xfs_repair

The disk is given as an export over a throw-away overlay, so that what a guest would do when it
starts (replay the journal, drop deleted files that were open) may be done before judging: without
that every point of a running guest would look damaged. The recovery point never changes.

The checkers are C programs that parse what a hostile guest wrote. Each runs without privileges, as
nobody and without a network where we are root, with limits on memory, processor time and file size,
and is killed after `timeout_s`. What it says is cut, shown and never acted on; the verdict is its
exit code. They are programs of their own (GPL) and talk to us by exit code and text alone.
Sources: manual pages e2fsck(8), ntfsfix(8), fsck.fat(8), xfs_repair(8); FAT: Microsoft's FAT32
specification 1.03, BS_Reserved1 (0x41 and 0x25), bit 0: not shut down cleanly.
"""

from __future__ import annotations

import os
import selectors
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from appliance.base.errors import ExternalProgramError
from appliance.base.reasons import Reason
from appliance.base.run_context import CancelToken
from appliance.blocks.device import BlockDevice
from appliance.blocks.partition_table import (
    PartitionTableError,
    Volume,
    VolumeKind,
    read_volumes,
)
from appliance.sandbox.spec import NbdExport
from appliance.sandbox.volume_file import UNPRIVILEGED_ID, volume_file

_OUTPUT_BYTES_MAX = 64 * 1024
_DETAIL_CHARACTERS_MAX = 300
_MEMORY_BYTES = 4 << 30
_POLL_S = 0.2
_CONFINED = "confined"  # said when every restriction is in force
_PROGRAM_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"

DAMAGED = Reason(
    "verify.file-system-damaged",
    "the checker of a file system found damage that the guest would not repair by itself",
    "try an older recovery point; check the file system inside the guest",
)
TABLE_DAMAGED = Reason(
    "verify.partition-table-damaged",
    "the partition table of a disk cannot be read",
    "try an older recovery point; look at the disk inside the guest",
)
NO_CHECKER = Reason(
    "verify.no-checker",
    "the program that checks this kind of file system is not installed",
    "install e2fsprogs, ntfs-3g, dosfstools or xfsprogs",
)
NOT_CHECKABLE = Reason(
    "verify.not-checkable",
    "nothing here checks this kind of volume",
    "none: a boot with probes covers it",
    warning=False,
)
JOURNAL_PENDING = Reason(
    "verify.journal-pending",
    "the file system has a journal to replay, which its checker cannot do, so it proves nothing",
    "boot the point, or back the guest up quiesced",
    warning=False,
)
CHECK_FAILED = Reason(
    "verify.check-failed",
    "the checker did not come to a result: killed, out of time or out of memory",
    "try again; the detail says what it said",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeCheck:
    disk: int
    number: int  # of the partition; 0: the whole disk
    kind: VolumeKind | None  # None: the table of the disk is damaged
    seconds: float
    reason: Reason | None  # None: checked and sound
    detail: str  # the checker's last line

    @property
    def damaged(self) -> bool:
        return self.reason in (DAMAGED, TABLE_DAMAGED)


@dataclass(frozen=True, slots=True)
class _Ended:
    exit_code: int | None  # None: it was killed for its time
    output: str

    @property
    def last_line(self) -> str:
        lines = [line.strip() for line in self.output.splitlines() if line.strip()]
        return (lines[-1] if lines else "")[:_DETAIL_CHARACTERS_MAX]


def check_disk(
    disk_number: int,
    disk: BlockDevice,
    export: NbdExport,
    folder: Path,
    *,
    timeout_s: float,
    cancel: CancelToken,
) -> list[VolumeCheck]:
    """Check every volume of a disk; `export` serves `disk`, which may be written to.

    `folder` is private and empty. Raises: CancelledError; what reading the disk raises.
    """
    began_s = time.perf_counter()
    try:
        volumes = read_volumes(disk)
    except PartitionTableError as error:
        return [
            VolumeCheck(
                disk=disk_number,
                number=0,
                kind=None,
                seconds=time.perf_counter() - began_s,
                reason=TABLE_DAMAGED,
                detail=str(error),
            )
        ]
    checks = []
    for volume in volumes:
        cancel.check()
        began_s = time.perf_counter()
        reason, detail = _check(volume, disk, export, folder, timeout_s, cancel)
        checks.append(
            VolumeCheck(
                disk=disk_number,
                number=volume.number,
                kind=volume.kind,
                seconds=time.perf_counter() - began_s,
                reason=reason,
                detail=detail,
            )
        )
    return checks


def _check(
    volume: Volume,
    disk: BlockDevice,
    export: NbdExport,
    folder: Path,
    timeout_s: float,
    cancel: CancelToken,
) -> tuple[Reason | None, str]:
    words = _CHECKERS.get(volume.kind)
    if words is None:
        return NOT_CHECKABLE, volume.kind.value
    if shutil.which(words[0], path=_PROGRAM_PATH) is None:
        return NO_CHECKER, words[0]
    if volume.kind is VolumeKind.FAT:
        _mark_clean(disk, volume)
    try:
        with volume_file(export, volume, folder) as path:
            ended = _run(words, path, volume, timeout_s, cancel)
    except ExternalProgramError as error:
        return CHECK_FAILED, str(error)[:_DETAIL_CHARACTERS_MAX]
    return _judge(volume.kind, ended), ended.last_line


_CHECKERS: dict[VolumeKind, tuple[str, ...]] = {
    VolumeKind.EXT: ("e2fsck", "-f", "-p"),  # what a starting guest would repair unasked
    VolumeKind.NTFS: ("ntfsfix", "-n"),
    VolumeKind.FAT: ("fsck.vfat", "-n"),
    VolumeKind.XFS: ("xfs_repair", "-n", "-f"),
}
_XFS_DIRTY = "valuable metadata changes in a log"
_XFS_GAVE_UP = "fatal error"


def _judge(kind: VolumeKind, ended: _Ended) -> Reason | None:
    code = ended.exit_code
    if code is None or code < 0:
        return CHECK_FAILED
    match kind:
        case VolumeKind.EXT:  # a sum: 1 repaired, 2 restart, 4 damage left, 8 and up: did not work
            if code >= 8:
                return CHECK_FAILED
            return DAMAGED if code & 4 else None
        case VolumeKind.XFS if code and _XFS_DIRTY in ended.output:
            return JOURNAL_PENDING
        case VolumeKind.XFS if code and _XFS_GAVE_UP in ended.output:
            return CHECK_FAILED
        case _:
            return {0: None, 1: DAMAGED}.get(code, CHECK_FAILED)


def _mark_clean(disk: BlockDevice, volume: Volume) -> None:
    """In the overlay: that it was in use when it was backed up is no damage."""
    is_fat32 = disk.read_at(volume.offset + 82, 5) == b"FAT32"
    place = volume.offset + (0x41 if is_fat32 else 0x25)
    flags = disk.read_at(place, 1)[0]
    if flags & 1:
        disk.write_at(place, bytes((flags & ~1,)))
        disk.flush()


def _run(
    words: Sequence[str], path: Path, volume: Volume, timeout_s: float, cancel: CancelToken
) -> _Ended:
    """Run a checker in confinement to its end, or kill it. Raises ExternalProgramError."""
    confined = [*_confinement(volume, timeout_s), *words, str(path)]
    try:
        process = subprocess.Popen(
            confined,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd="/",
            env={"PATH": _PROGRAM_PATH, "LC_ALL": "C"},
            start_new_session=True,
        )
    except OSError as error:
        raise ExternalProgramError(f"cannot start {words[0]}: {error}") from error
    try:
        output = _collect(process, time.monotonic() + timeout_s, cancel)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        assert process.stdout is not None
        process.stdout.close()
    if output is None:
        return _Ended(None, f"killed after {timeout_s:.0f} s")
    confined_first, _, said = output.decode("utf-8", "replace").partition("\n")
    if confined_first != _CONFINED:  # a program before the checker failed, with an exit code too
        return _Ended(None, confined_first)
    return _Ended(process.returncode, said)


def _collect(process: subprocess.Popen[bytes], end_s: float, cancel: CancelToken) -> bytes | None:
    """Read the output to its end, keeping both its ends; None: the time was over first."""
    assert process.stdout is not None
    kept = bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            cancel.check()
            if time.monotonic() > end_s:
                return None
            if not selector.select(_POLL_S):
                continue
            piece = os.read(process.stdout.fileno(), _OUTPUT_BYTES_MAX)
            if not piece:
                process.wait()
                return bytes(kept)
            kept += piece
            if len(kept) > 2 * _OUTPUT_BYTES_MAX:  # the first line and the last ones
                del kept[_OUTPUT_BYTES_MAX:-_OUTPUT_BYTES_MAX]


def _confinement(volume: Volume, timeout_s: float) -> list[str]:
    drop = ["setpriv", "--no-new-privs", "--pdeathsig", "KILL"]
    if os.geteuid() == 0:
        identity = str(UNPRIVILEGED_ID)
        drop = ["unshare", "--net", "--ipc", "--", *drop, "--reuid", identity, "--regid", identity]
        drop += ["--clear-groups", "--bounding-set", "-all", "--inh-caps", "-all"]
    limits = [f"--as={_MEMORY_BYTES}", f"--cpu={int(timeout_s) + 1}"]
    if volume.kind is not VolumeKind.XFS:  # which gives up when it cannot lift this limit
        limits.append(f"--fsize={volume.length}")
    began = ["sh", "-c", f'echo {_CONFINED} && exec "$@"', "sh"]
    return [*drop, "--", "prlimit", *limits, "--core=0", "--nofile=64", "--", *began]
