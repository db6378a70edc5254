"""A virtual hard disk as its files: the leaf, its parents, and what joins them.

A child names its parent by relative and absolute path and by the parent's DataWriteGuid; a parent
that was written since does not fit any more. A file that was not closed has its log replayed by
QEMU before it is opened, as Windows does at every open.
Thread model: functions without state; who calls has the files. Source: [MS-VHDX] 2.2.4, 2.6.2.6.
"""

from __future__ import annotations

import subprocess
import uuid
from dataclasses import dataclass
from pathlib import Path

from lab.hyperv_host.errors import CorruptDiskError, HypervError, NotFoundError
from lab.hyperv_host.vhdx_disk import LogNotReplayedError, VhdxDisk, create
from lab.hyperv_host.vhdx_format import MIB, DiskGeometry
from lab.hyperv_host.windows_path import Volumes, WindowsPath

CHAIN_FILES_MAX = 64
_CHILD_BLOCK_BYTES = 2 * MIB
_REPLAY_TIMEOUT_S = 300.0


@dataclass(slots=True)
class ChainFile:
    path: WindowsPath
    disk: VhdxDisk


def open_chain(volumes: Volumes, leaf: WindowsPath, *, writable: bool) -> list[ChainFile]:
    """Leaf first, parents read-only.

    Raises:
        NotFoundError, CorruptDiskError: a file is missing, damaged, or not the parent it was.
    """
    files: list[ChainFile] = []
    try:
        files.append(_open(volumes, leaf, writable=writable))
        while files[-1].disk.geometry.differencing:
            child = files[-1]
            if len(files) == CHAIN_FILES_MAX:
                raise CorruptDiskError("the chain of virtual hard disks is too long")
            parent = _open(volumes, parent_path(volumes, child), writable=False)
            files.append(parent)
            child.disk.parent = parent.disk
            if dict(child.disk.geometry.parent).get("parent_linkage", "").lower() != _linkage(
                parent.disk
            ):
                raise CorruptDiskError(
                    "The chain of virtual hard disks is corrupted. There is a mismatch in the"
                    " identifiers of the parent virtual hard disk and differencing disk."
                )
    except BaseException:
        close_chain(files)
        raise
    return files


def close_chain(files: list[ChainFile]) -> None:
    for file in files:
        file.disk.close()


def parent_path(volumes: Volumes, child: ChainFile) -> WindowsPath:
    """Raises NotFoundError: neither path of the locator leads to a file."""
    locator = dict(child.disk.geometry.parent)
    relative = locator.get("relative_path", "").removeprefix(".\\")
    candidates = [str(child.path.folder.joined(relative))] if relative else []
    candidates += [text for text in (locator.get("absolute_win32_path", ""),) if text]
    for text in candidates:
        path = WindowsPath.parse(text.removeprefix("\\\\?\\"))
        if volumes.file(path).exists():
            return path
    raise NotFoundError(f"The parent of '{child.path}' does not exist.")


def locator_of(parent: WindowsPath, disk: VhdxDisk) -> tuple[tuple[str, str], ...]:
    return (
        ("parent_linkage", _linkage(disk)),
        ("relative_path", f".\\{parent.name}"),
        ("absolute_win32_path", str(parent)),
    )


def create_child(volumes: Volumes, path: WindowsPath, parent: ChainFile) -> ChainFile:
    """An empty differencing disk over `parent`, in the same folder, open for writing."""
    over = parent.disk.geometry
    geometry = DiskGeometry(
        size_bytes=over.size_bytes,
        block_bytes=_CHILD_BLOCK_BYTES,
        disk_id=over.disk_id,
        logical_sector_bytes=over.logical_sector_bytes,
        physical_sector_bytes=over.physical_sector_bytes,
        parent=locator_of(parent.path, parent.disk),
    )
    place = volumes.place(path)
    create(place, geometry)
    child = ChainFile(path, VhdxDisk(place, writable=True))
    child.disk.parent = parent.disk
    return child


def create_disk(
    place: Path, size_bytes: int, *, block_bytes: int = 32 * MIB, fixed: bool = False
) -> None:
    """An empty disk of its own; its sectors are 512 bytes on media of 4096, as Windows makes it."""
    create(
        place,
        DiskGeometry(
            size_bytes=size_bytes, block_bytes=block_bytes, disk_id=uuid.uuid4(), fixed=fixed
        ),
    )


def _open(volumes: Volumes, path: WindowsPath, *, writable: bool) -> ChainFile:
    place = volumes.existing_file(path)
    try:
        return ChainFile(path, VhdxDisk(place, writable=writable))
    except LogNotReplayedError:
        if not isinstance(place, Path):
            raise
        _replay_log(place)
        return ChainFile(path, VhdxDisk(place, writable=writable))
    except OSError as error:
        raise HypervError(f"cannot open '{path}': {error.strerror}") from error


def _replay_log(place: Path) -> None:
    done = subprocess.run(
        ["qemu-img", "check", "-q", "-r", "all", "-f", "vhdx", str(place)],
        capture_output=True,
        check=False,
        timeout=_REPLAY_TIMEOUT_S,
    )
    if done.returncode not in (0, 3):
        raise CorruptDiskError(f"the log of {place.name} cannot be replayed")


def _linkage(disk: VhdxDisk) -> str:
    return f"{{{disk.header.data_write_guid}}}"
