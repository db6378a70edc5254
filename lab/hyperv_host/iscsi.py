"""The iSCSI initiator of the practice host: libiscsi, by itself and inside QEMU's storage daemon.

A session is a qemu-storage-daemon that has logged in; a disk that is brought online is shown by it
as files over FUSE, first whole (to read its partitions), then the partition, on which ntfs-3g
mounts the volume for reading and writing, as Windows would. Taking it offline undoes it in order.
A disk that stays offline may be served whole to a machine, over NBD on a local socket.

Invariants: secrets travel over QMP and the environment of children, never in argv; `close` leaves
no process and no mount. Thread model: any thread, calls are serialised.
Source: QEMU 7.2 qapi/block-core.json (iscsi), qapi/block-export.json; libiscsi 1.19.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from lab.esx.errors import HostError
from lab.esx.qemu_process import QemuProcess, storage_daemon
from lab.hyperv_host.errors import HypervError, NotFoundError, StateError

INITIATOR = "iqn.1991-05.com.microsoft:practice-host"
_TARGET = re.compile(r"Target:(\S+)")
_DISK = "Peripheral Device Type:DIRECT_ACCESS"
_NO_LUN = "LOGICAL_UNIT_NOT_SUPPORTED"
_LUNS_MOST = 256
_SERIAL = re.compile(r"Unit Serial Number:\[([^\]]*)\]")
_RESERVED_TYPE = "E3C9E316-0B5C-4DB8-817D-F92DF00215AE"
_CHILD_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Portal:
    address: str
    port: int

    def __str__(self) -> str:
        return f"{self.address}:{self.port}"


@dataclass(slots=True)
class IscsiDisk:
    number: int
    lun: int
    serial: str
    folder: Path  # of its FUSE files
    mounted: Path | None = None
    ntfs: subprocess.Popen[bytes] | None = None
    served: bool = False  # whole, to a machine


@dataclass(slots=True)
class Session:
    portal: Portal
    daemon: QemuProcess
    socket: Path  # where disks are served whole
    disks: list[IscsiDisk] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class WholeDisk:
    """A disk as a machine's QEMU reaches it, until `release`."""

    socket: Path
    export: str
    release: Callable[[], None]


class IscsiInitiator:
    """`run_folder` takes FUSE files; the service is started by the first login."""

    def __init__(self, run_folder: Path) -> None:
        self._folder = run_folder / "iscsi"
        self._lock = threading.RLock()
        self._sessions: dict[str, Session] = {}
        self._last_number = 0
        self.started = False

    def connected(self, target: str) -> bool:
        with self._lock:
            return target in self._sessions

    def targets(self, portal: Portal) -> list[str]:
        """What the portal shows to this initiator. Raises HypervError: it does not answer."""
        self.started = True
        listing = _run(["iscsi-ls", "-i", INITIATOR, f"iscsi://{portal}"], {})
        return _TARGET.findall(listing)

    def connect(self, portal: Portal, target: str, user: str, secret: str) -> None:
        """Log in, one-way CHAP. Raises HypervError: refused, or no disk is there."""
        with self._lock:
            if target in self._sessions:
                return
            if not 12 <= len(secret) <= 16:
                raise HypervError("The CHAP secret is not between 12 and 16 characters long.")
            account = {"LIBISCSI_CHAP_USERNAME": user, "LIBISCSI_CHAP_PASSWORD": secret}
            luns = self._luns(portal, target, account)
            daemon = storage_daemon()
            session = Session(portal, daemon, self._folder / f"{self._last_number + 1}.nbd")
            try:
                secret_object = {"qom-type": "secret", "id": "chap", "data": secret}
                daemon.qmp.execute("object-add", secret_object)
                for lun in luns:
                    self._open(session, target, lun, user)
                    serial = self._serial(portal, target, lun, account)
                    self._last_number += 1
                    folder = self._folder / str(self._last_number)
                    session.disks.append(IscsiDisk(self._last_number, lun, serial, folder))
            except HostError as error:
                daemon.close()
                raise HypervError(f"The login to the iSCSI target failed: {error}") from error
            except BaseException:
                daemon.close()
                raise
            self._sessions[target] = session

    def disconnect(self, target: str) -> bool:
        """Log out. Raises StateError: one of its disks is online. False: it was not logged in."""
        with self._lock:
            session = self._sessions.get(target)
            if session is None:
                return False
            if any(disk.mounted or disk.served for disk in session.disks):
                raise StateError("The session cannot be logged out since a device is in use.")
            del self._sessions[target]
            _end(session.daemon)
            return True

    def disk(self, serial: str) -> tuple[Session, IscsiDisk]:
        """Raises NotFoundError."""
        with self._lock:
            for session in self._sessions.values():
                for disk in session.disks:
                    if disk.serial == serial:
                        return session, disk
        raise NotFoundError(f"no disk has the serial number {serial!r}")

    def numbered(self, number: int) -> tuple[Session, IscsiDisk]:
        """Raises NotFoundError."""
        with self._lock:
            for session in self._sessions.values():
                for disk in session.disks:
                    if disk.number == number:
                        return session, disk
        raise NotFoundError(f"the host has no disk {number}")

    def serve(self, number: int) -> WholeDisk:
        """Give a disk to a machine. Raises NotFoundError; StateError: it is online."""
        with self._lock:
            session, disk = self.numbered(number)
            if disk.mounted is not None:
                raise StateError("A disk that is online cannot be used by a virtual machine.")
            execute = session.daemon.qmp.execute
            if not session.socket.exists():
                self._folder.mkdir(parents=True, exist_ok=True)
                path = {"type": "unix", "data": {"path": str(session.socket)}}
                execute("nbd-server-start", {"addr": path})
            name = f"disk{disk.lun}"
            execute(
                "block-export-add",
                {"type": "nbd", "id": name, "node-name": f"lun{disk.lun}", "name": name}
                | {"writable": True},
            )
            disk.served = True
        return WholeDisk(session.socket, name, lambda: self._take_back(session, disk))

    def _take_back(self, session: Session, disk: IscsiDisk) -> None:
        with self._lock, contextlib.suppress(HostError):
            disk.served = False
            _unexport(session.daemon, f"disk{disk.lun}")

    @contextmanager
    def shown_whole(self, number: int) -> Iterator[Path]:
        """A disk as a file to be read. Raises NotFoundError, HypervError."""
        with self._lock:
            session, disk = self.numbered(number)
            if disk.served or disk.mounted is not None:
                raise StateError("The disk is in use.")
            disk.folder.mkdir(parents=True, exist_ok=True)
            whole = disk.folder / "disk"
            _export(session.daemon, f"whole{disk.lun}", f"lun{disk.lun}", whole, writable=False)
            try:
                yield whole
            finally:
                _unexport(session.daemon, f"whole{disk.lun}")
                whole.unlink()

    def bring_online(self, serial: str, mount_point: Path) -> IscsiDisk:
        """Mount the disk's largest partition, NTFS, for writing. Repeatable.

        Raises:
            NotFoundError: no such disk, or it has no partition.
            HypervError: the volume cannot be mounted.
        """
        with self._lock:
            session, disk = self.disk(serial)
            if disk.mounted is not None:
                return disk
            disk.folder.mkdir(parents=True, exist_ok=True)
            try:
                offset, length = self._partition(session, disk)
                self._show_partition(session, disk, offset, length)
                disk.ntfs = _mount_ntfs(disk.folder / "volume", mount_point)
            except HostError as error:
                self._hide(session, disk)
                raise HypervError(f"the disk cannot be brought online: {error}") from error
            except BaseException:
                self._hide(session, disk)
                raise
            disk.mounted = mount_point
            return disk

    def take_offline(self, serial: str) -> None:
        """Unmount and hide. Raises NotFoundError; HypervError: a file on it is open."""
        with self._lock:
            session, disk = self.disk(serial)
            if disk.mounted is not None:
                _unmount(disk.mounted, disk.ntfs)
                disk.mounted, disk.ntfs = None, None
            self._hide(session, disk)

    def abandon_lost(self) -> None:
        """Kill sessions whose portal is gone: what waits for their disks gets errors instead."""
        for session in list(self._sessions.values()):
            try:
                socket.create_connection((session.portal.address, session.portal.port), 2).close()
            except OSError:
                session.daemon.kill()

    def close(self) -> None:
        """As the host goes: disks offline, sessions ended. Idempotent."""
        with self._lock:
            for target, session in list(self._sessions.items()):
                for disk in session.disks:
                    if disk.mounted is not None and disk.ntfs is not None:
                        _force_unmount(disk.mounted, disk.ntfs)
                        disk.mounted = None
                    self._hide(session, disk)
                _end(session.daemon)
                del self._sessions[target]
            shutil.rmtree(self._folder, ignore_errors=True)

    # ------------------------------------------------------------------ steps

    def _luns(self, portal: Portal, target: str, account: dict[str, str]) -> list[int]:
        """Numbers are asked one by one: `iscsi-ls -s` would log in to every target there is."""
        luns = []
        for number in range(_LUNS_MOST):
            words = ["iscsi-inq", "-i", INITIATOR, f"iscsi://{portal}/{target}/{number}"]
            try:
                if _DISK in _run(words, account):
                    luns.append(number)
            except HypervError as error:
                if _NO_LUN in str(error):
                    break
                raise HypervError(f"The login to the iSCSI target failed: {error}") from error
        if not luns:
            raise HypervError("The iSCSI target has no disks.")
        return luns

    def _serial(self, portal: Portal, target: str, lun: int, account: dict[str, str]) -> str:
        words = ["iscsi-inq", "-i", INITIATOR, "-e", "1", "-c", str(0x80)]
        found = _SERIAL.search(_run([*words, f"iscsi://{portal}/{target}/{lun}"], account))
        return found[1].strip() if found else ""

    def _open(self, session: Session, target: str, lun: int, user: str) -> None:
        node = {
            "driver": "iscsi",
            "node-name": f"lun{lun}",
            "transport": "tcp",
            "portal": str(session.portal),
            "target": target,
            "lun": lun,
            "user": user,
            "password-secret": "chap",
            "initiator-name": INITIATOR,
        }
        session.daemon.qmp.execute("blockdev-add", node)

    def _partition(self, session: Session, disk: IscsiDisk) -> tuple[int, int]:
        """(offset, length) of the largest partition that is not a reserved one."""
        whole = disk.folder / "disk"
        _export(session.daemon, f"whole{disk.lun}", f"lun{disk.lun}", whole, writable=False)
        try:
            listing = _run(["sfdisk", "--json", str(whole)], {})
        finally:
            _unexport(session.daemon, f"whole{disk.lun}")
            whole.unlink()
        table = json.loads(listing)["partitiontable"]
        sector = int(table["sectorsize"])
        partitions = [one for one in table.get("partitions", []) if one["type"] != _RESERVED_TYPE]
        if not partitions:
            raise NotFoundError("the disk has no partition")
        largest = max(partitions, key=lambda one: int(one["size"]))
        return int(largest["start"]) * sector, int(largest["size"]) * sector

    def _show_partition(self, session: Session, disk: IscsiDisk, offset: int, length: int) -> None:
        node = {"driver": "raw", "node-name": f"part{disk.lun}", "file": f"lun{disk.lun}"}
        session.daemon.qmp.execute("blockdev-add", node | {"offset": offset, "size": length})
        volume = disk.folder / "volume"
        _export(session.daemon, f"part{disk.lun}", f"part{disk.lun}", volume, writable=True)

    def _hide(self, session: Session, disk: IscsiDisk) -> None:
        with contextlib.suppress(HostError):
            _unexport(session.daemon, f"part{disk.lun}")
        with contextlib.suppress(HostError):
            session.daemon.qmp.execute("blockdev-del", node_name=f"part{disk.lun}")
        release_mounts_below(disk.folder)  # of a daemon that was killed
        shutil.rmtree(disk.folder, ignore_errors=True)


def _export(daemon: QemuProcess, name: str, node: str, file: Path, *, writable: bool) -> None:
    file.touch()
    shown = {"type": "fuse", "id": name, "node-name": node, "mountpoint": str(file)}
    daemon.qmp.execute("block-export-add", shown | {"writable": writable})


def _unexport(daemon: QemuProcess, name: str) -> None:
    mark = daemon.qmp.event_mark
    daemon.qmp.execute("block-export-del", id=name)
    daemon.qmp.wait_event(
        lambda event, data: event == "BLOCK_EXPORT_DELETED" and data["id"] == name,
        since=mark,
        timeout_s=_CHILD_TIMEOUT_S,
    )


def _end(daemon: QemuProcess) -> None:
    with contextlib.suppress(HostError):
        daemon.qmp.execute("quit")
        daemon.wait(10.0)
    daemon.close()


def _mount_ntfs(volume: Path, mount_point: Path) -> subprocess.Popen[bytes]:
    """ntfs-3g as a child of ours; returns once the volume is mounted."""
    options = "rw,silent,no_detach,streams_interface=none,big_writes"
    process = subprocess.Popen(
        ["ntfs-3g", "-o", options, str(volume), str(mount_point)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    ended = threading.Event()
    while not os.path.ismount(mount_point):
        if process.poll() is not None:
            assert process.stderr is not None
            words = process.stderr.read().decode(errors="replace").strip()
            raise HypervError(f"the volume cannot be mounted: {words[-500:]}")
        ended.wait(0.02)
    return process


def _unmount(mount_point: Path, process: subprocess.Popen[bytes] | None) -> None:
    """Raises HypervError: something on it is open."""
    done = subprocess.run(
        ["umount", str(mount_point)], capture_output=True, check=False, timeout=_CHILD_TIMEOUT_S
    )
    if done.returncode:
        raise HypervError(f"The volume is in use: {done.stderr.decode(errors='replace').strip()}")
    if process is not None:
        process.wait(_CHILD_TIMEOUT_S)  # it has written everything then


def _force_unmount(mount_point: Path, process: subprocess.Popen[bytes]) -> None:
    try:
        _unmount(mount_point, process)
    except (HypervError, subprocess.TimeoutExpired):
        process.kill()
        process.wait()
        release_mount(mount_point)


def release_mount(mount_point: Path) -> None:
    """Take away a mount whose process is gone."""
    subprocess.run(["umount", "-l", str(mount_point)], capture_output=True, check=False)


def release_mounts_below(*folders: Path) -> None:
    """What a lab that was killed left mounted there, the innermost first."""
    roots = tuple(f"{folder}/" for folder in folders)
    mounted = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    ours = [text for text in mounted if text.startswith(roots)]
    for text in sorted(ours, key=len, reverse=True):
        release_mount(Path(text))


def _run(command: list[str], environment: dict[str, str]) -> str:
    """Raises HypervError with what the program said."""
    done = subprocess.run(
        command,
        env={**os.environ, **environment},
        capture_output=True,
        check=False,
        timeout=_CHILD_TIMEOUT_S,
    )
    if done.returncode:
        words = (done.stderr or done.stdout).decode(errors="replace").strip()
        raise HypervError(f"{command[0]}: {words[-500:]}")
    return done.stdout.decode(errors="replace")
