r"""Paths of a Hyper-V host as places on its SMB shares: `D:\VM\a.vhdx` is `D$`, `VM\a.vhdx`. Pure.

What a host says is not trusted: a path that is not plainly one of a local drive is refused, so that
no path leads out of its share or into a stream.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from hyperv.errors import FileError

_DRIVE_PATH = re.compile(r"([A-Za-z]):\\([^\x00-\x1f<>:\"/|?*]+)")
_LIMIT_CHARS = 32767


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedPath:
    share: str  # "D$"
    path: str  # "VM\\a.vhdx", from the share's root


def shared_path(path: str, shares: Mapping[str, str] | None = None) -> SharedPath:
    """Return where a file of the host is reached.

    Args:
        shares: share by drive letter ("D"), where admin shares are switched off.

    Raises: FileError: not an absolute path of a local drive.
    """
    found = _DRIVE_PATH.fullmatch(path) if len(path) <= _LIMIT_CHARS else None
    if found is None:
        raise FileError(f"{path[:300]!r} is not a path of a local drive")
    drive, rest = found[1].upper(), found[2]
    parts = rest.split("\\")
    if any(part in ("", ".", "..") for part in parts):
        raise FileError(f"{path[:300]!r} is not a plain path")
    share = (shares or {}).get(drive, f"{drive}$")
    return SharedPath(share=share, path=rest)


def drive_of(path: str) -> str:
    """The drive letter, upper case. Raises FileError: as `shared_path`."""
    shared_path(path)
    return path[0].upper()


def base_name(path: str) -> str:
    """What comes after the last backslash, lower case: Windows does not tell case apart."""
    return path.rpartition("\\")[2].lower()


def is_unc(path: str) -> bool:
    """Whether the file lies on another server: `\\\\server\\share\\…`, not `\\\\?\\…`."""
    return path.startswith("\\\\") and not path.startswith(("\\\\?\\", "\\\\.\\"))
