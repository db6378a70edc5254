"""A disk chain as a block device of this machine: what the appliance's guest sees of a hot-add.

A qemu-storage-daemon merges the chain and shows it as one file over FUSE; a loop device stands on
that file. For a nonpersistent disk the daemon writes into a redo log beside the source, which goes
with the attachment; the source's files are opened read-only then. Otherwise writes go through to
the leaf, and a flush reaches its file.

Thread model: one caller at a time. Invariant: `close` gives back device, mount and process,
whatever failed; what a killed lab leaves is found and released by the next one.
"""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path

from lab.esx.datastore import Datastores
from lab.esx.disk_chain import DiskChain, file_node
from lab.esx.errors import HostError
from lab.esx.loop_devices import (
    attach_loop,
    detach_loop,
    release_dead_loops,
    release_loops_below,
)
from lab.esx.qemu_process import QemuProcess, storage_daemon

_EXPORT = "disk"
_FILE_NAME = "lab-disk.img"  # tells our loop devices from others'


class ExportedDisk:
    """`redo` is the chain's first file when writes are to be thrown away."""

    def __init__(
        self, datastores: Datastores, chain: DiskChain, folder: Path, *, redo: bool
    ) -> None:
        """`folder` is new and ours alone. Raises HostError; nothing is left then."""
        folder.mkdir()
        self._folder = folder
        self._mount = folder / _FILE_NAME
        self._mount.touch()
        self.device: Path | None = None
        self._daemon: QemuProcess | None = None
        try:
            self._daemon = storage_daemon()
            self._open(self._daemon, datastores, chain, redo=redo)
            self.device = attach_loop(self._mount, read_only=False)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Idempotent."""
        if self.device is not None:
            subprocess.run(
                ["blockdev", "--flushbufs", str(self.device)], check=False, capture_output=True
            )
            with contextlib.suppress(HostError):
                detach_loop(self.device)
            self.device = None
        daemon, self._daemon = self._daemon, None
        if daemon is not None:
            with contextlib.suppress(HostError):
                daemon.qmp.execute("quit")
                daemon.wait(10.0)
            daemon.close()
            _unmount(self._mount)
            self._mount.unlink(missing_ok=True)
            self._folder.rmdir()

    def _open(
        self, daemon: QemuProcess, datastores: Datastores, chain: DiskChain, *, redo: bool
    ) -> None:
        below = ""
        for place, disk in enumerate(reversed(chain.files)):
            leaf = place == len(chain.files) - 1
            node = file_node(datastores, disk, read_only=redo and not leaf)
            node["node-name"] = f"n{place}"
            if below:
                node["backing"] = below
            daemon.qmp.execute("blockdev-add", node)
            below = node["node-name"]
        daemon.qmp.execute(
            "block-export-add",
            {
                "type": "fuse",
                "id": _EXPORT,
                "node-name": below,
                "mountpoint": str(self._mount),
                "writable": True,
            },
        )


def release_exports_below(folder: Path) -> None:
    """What a lab that was killed left in this folder: loop devices, then mounts."""
    release_loops_below(folder)
    if folder.is_dir():
        for mount in folder.glob(f"**/{_FILE_NAME}"):
            _unmount(mount)


def release_dead_exports() -> None:
    """What labs that were killed left anywhere; a living lab's exports answer, and stay."""
    for mount in release_dead_loops(_FILE_NAME):
        _unmount(mount)


def _unmount(mount: Path) -> None:
    """A daemon that died leaves its mount; one that ended has unmounted itself."""
    subprocess.run(["fusermount3", "-u", "-q", "-z", str(mount)], check=False, capture_output=True)
