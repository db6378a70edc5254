"""Prove that a recovery point works: re-hash what it refers to, or boot it in isolation.

A boot verification is an instant recovery in small: each disk as an overlay over the point, served
over NBD on a Unix socket in a private folder, booted in the sandbox, probed, switched off; the
overlays are discarded. What the guest read is kept as the point's boot profile and fetched ahead
at the next start.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from appliance.base.bounded_map import bounded_map
from appliance.base.run_context import RunContext
from appliance.blocks.layers import PrefetchReader, RecordingReader
from appliance.blocks.overlay import Overlay
from appliance.exports.nbd import NbdExport, NbdServer
from appliance.repository.boot_profile import BootProfile, load_profile, save_profile
from appliance.repository.format import SEGMENT_BYTES
from appliance.repository.image_tree import TreeReader
from appliance.repository.manifest import DiskEntry, Manifest
from appliance.repository.repository import Repository
from appliance.sandbox.boot import BootReport, boot
from appliance.sandbox.probes import Probe
from appliance.sandbox.spec import DiskInterface, MachineSpec
from appliance.sandbox.spec import NbdExport as SandboxDisk


@dataclass(frozen=True, slots=True, kw_only=True)
class HashOutcome:
    chunk_count: int  # distinct chunks read and proven
    verified_bytes: int
    seconds: float


def verify_hashes(repository: Repository, manifest: Manifest, context: RunContext) -> HashOutcome:
    """Read every chunk of the point and prove it against its digest.

    Raises: ChunkMissingError, ChunkCorruptError: the first damage found; CancelledError.
    """
    started_s = time.perf_counter()
    seen: set[bytes] = set()

    def prove(digests: set[bytes]) -> int:
        context.cancel.check()
        raws = repository.chunks.load_many(digests)
        return sum(len(raw) for raw in raws.values())

    def unproven() -> Iterator[set[bytes]]:
        for disk in manifest.disks:
            tree = TreeReader(disk.root, repository.chunks.load)
            context.progress.expect(disk.size_bytes)
            for _, digest in tree.leaves():
                wanted = {entry.digest for entry in tree.load_leaf(digest).entries} - seen
                seen.update(wanted)
                context.progress.advance(SEGMENT_BYTES)
                yield wanted

    workers = repository.options.workers
    with closing(bounded_map(prove, unproven(), workers=workers, name="verify")) as proven:
        verified_bytes = sum(proven)
    return HashOutcome(
        chunk_count=len(seen),
        verified_bytes=verified_bytes,
        seconds=time.perf_counter() - started_s,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class BootOutcome:
    report: BootReport
    start_seconds: float  # from the request until QEMU runs
    read_bytes: int  # that the guest asked of the point
    prefetched_bytes: int  # named by the boot profile used, 0 without one


@dataclass(frozen=True, slots=True, kw_only=True)
class BootOptions:
    memory_mib: int = 512
    cpus: int = 1
    disk_interface: DiskInterface = DiskInterface.VIRTIO
    deadline_s: float = 600.0


def verify_boot(
    repository: Repository,
    manifest: Manifest,
    probes: Sequence[Probe],
    context: RunContext,
    *,
    options: BootOptions,
    artifact_folder: Path,
) -> BootOutcome:
    """Boot the point in isolation; what the guest writes is discarded.

    Crash guarantee: a killed run leaves a private temporary folder and no process.

    Raises: CancelledError, SandboxError, ExternalProgramError, CorruptError, StorageError.
    """
    started_s = time.perf_counter()
    profile = load_profile(repository, manifest)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="holdfast-boot-")))
        readers: dict[int, RecordingReader] = {}
        exports = []
        for disk in manifest.disks:
            image = repository.open_image(manifest, disk.number)
            ahead = PrefetchReader(image, profile.get(disk.number, []))
            readers[disk.number] = RecordingReader(ahead)
            stack.callback(readers[disk.number].close)
            overlay = Overlay.create(
                folder / f"disk-{disk.number}",
                readers[disk.number],
                {"point": manifest.point_id, "disk": disk.number},
            )
            stack.callback(overlay.discard)
            exports.append(NbdExport(name=_export_name(disk), disk=overlay, read_only=False))
        socket_path = folder / "nbd"
        stack.enter_context(NbdServer(exports, address=socket_path))
        spec = MachineSpec(
            disks=tuple(
                SandboxDisk(socket_path=socket_path, export=_export_name(disk))
                for disk in manifest.disks
            ),
            memory_mib=options.memory_mib,
            cpus=options.cpus,
            disk_interface=options.disk_interface,
        )
        start_seconds = time.perf_counter() - started_s
        report = boot(
            spec, probes, options.deadline_s, context.cancel, artifact_folder=artifact_folder
        )
        recorded: BootProfile = {number: reader.profile() for number, reader in readers.items()}
        read_bytes = sum(reader.read_bytes for reader in readers.values())
    if report.ok:
        save_profile(repository, manifest, recorded)
    return BootOutcome(
        report=report,
        start_seconds=start_seconds,
        read_bytes=read_bytes,
        prefetched_bytes=sum(extent.length for part in profile.values() for extent in part),
    )


def _export_name(disk: DiskEntry) -> str:
    return f"disk-{disk.number}"
