"""A recovery point published for the sandbox: each disk as a throw-away overlay, over NBD.

    repository -> boot profile fetched ahead -> what is read is recorded -> overlay -> NBD socket

The socket lies in a private folder of its own. Leaving discards what was written, removes the
folder and lets go of the point. A killed run leaves a private temporary folder and no process.
Thread model: as its parts; enter and leave on one thread.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from appliance.blocks.layers import PrefetchReader, RecordingReader
from appliance.blocks.overlay import Overlay
from appliance.exports.nbd import NbdExport, NbdServer
from appliance.repository.boot_profile import BootProfile, load_profile
from appliance.repository.manifest import Manifest
from appliance.repository.repository import Repository
from appliance.sandbox.spec import NbdExport as SandboxDisk


class PublishedPoint:
    def __init__(self, repository: Repository, manifest: Manifest) -> None:
        self.manifest = manifest
        self._repository = repository
        self._stack = ExitStack()
        self._socket_path = Path()
        self._profile: BootProfile = {}
        self._readers: dict[int, RecordingReader] = {}
        self.overlays: dict[int, Overlay] = {}

    def __enter__(self) -> Self:
        """Raises: PointNotFoundError, CorruptError, StorageError."""
        with ExitStack() as stack:
            self._publish(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def disks(self) -> tuple[SandboxDisk, ...]:
        """For a machine, in the order of the manifest."""
        return tuple(self.disk(entry.number) for entry in self.manifest.disks)

    def disk(self, number: int) -> SandboxDisk:
        return SandboxDisk(socket_path=self._socket_path, export=_export_name(number))

    @property
    def read_bytes(self) -> int:
        """What was asked of the point so far."""
        return sum(reader.read_bytes for reader in self._readers.values())

    @property
    def prefetched_bytes(self) -> int:
        """Named by the boot profile that was used; 0 without one."""
        return sum(extent.length for part in self._profile.values() for extent in part)

    def recorded_profile(self) -> BootProfile:
        return {number: reader.profile() for number, reader in self._readers.items()}

    def _publish(self, stack: ExitStack) -> None:
        self._profile = load_profile(self._repository, self.manifest)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="holdfast-boot-")))
        exports = []
        for disk in self.manifest.disks:
            image = self._repository.open_image(self.manifest, disk.number)
            ahead = PrefetchReader(image, self._profile.get(disk.number, []))
            reader = self._readers[disk.number] = RecordingReader(ahead)
            stack.callback(reader.close)
            overlay = Overlay.create(
                folder / f"disk-{disk.number}",
                reader,
                {"point": self.manifest.point_id, "disk": disk.number},
            )
            stack.callback(overlay.discard)
            self.overlays[disk.number] = overlay
            exports.append(NbdExport(name=_export_name(disk.number), disk=overlay, read_only=False))
        self._socket_path = folder / "nbd"
        stack.enter_context(NbdServer(exports, address=self._socket_path))


def _export_name(number: int) -> str:
    return f"disk-{number}"
