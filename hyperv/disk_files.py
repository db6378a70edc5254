"""Empty disk files on a host, to be written over SMB: made, found by marker, removed.

The host itself writes down what was made for a marker, so a run that died, and even a lost catalog,
leaves no nameless file: `remove_disk_files` takes away what is not in use by a finished VM.

Thread model: functions; they block. Source: scripts `make_disk_files`, `remove_disk_files`,
`list_disk_files`.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from hyperv.errors import ProtocolError
from hyperv.host_session import HostSession
from hyperv.patience import Patience
from hyperv.script_types import Answer, Removed


class DiskFiles(Answer):
    """`paths` in the order of the names; `free_bytes` of their volume, -1 where it does not say."""

    paths: list[str] = Field(max_length=260)
    free_bytes: int


class _Markers(Answer):
    markers: list[str] = Field(max_length=16384)


def make_disk_files(
    host: HostSession, marker: str, folder: str, names: Sequence[str], patience: Patience
) -> DiskFiles:
    """Make a file per name (without ending); asked again, the same. Raises HypervError."""
    parameters = {"marker": marker, "folder": folder, "names": list(names)}
    made = host.call("make_disk_files", parameters, DiskFiles, patience=patience)
    if len(made.paths) != len(names):
        raise ProtocolError(f"{host.address}: {len(made.paths)} files for {len(names)} names")
    return made


def remove_disk_files(host: HostSession, marker: str, patience: Patience) -> None:
    """Remove what was made for the marker, after the VM that carries it. Raises HypervError."""
    parameters = {"marker": marker, "keep": False}
    host.call("remove_disk_files", parameters, Removed, patience=patience)


def keep_disk_files(host: HostSession, marker: str, patience: Patience) -> None:
    """They are a finished VM's from now on. Raises HypervError."""
    parameters = {"marker": marker, "keep": True}
    host.call("remove_disk_files", parameters, Removed, patience=patience)


def list_disk_files(host: HostSession, prefix: str, patience: Patience) -> list[str]:
    """Markers of ours that files were made for. Raises HypervError."""
    found = host.call("list_disk_files", {"prefix": prefix}, _Markers, patience=patience)
    return found.markers
