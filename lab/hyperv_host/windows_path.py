"""Windows paths of the practice host, and where their files are: in a folder per drive letter, or
on a share.

`volumes/D` holds what the host calls `D:\\` and Samba shares as `D$`. Names are compared without
case, as NTFS does; a path that could mean anything else than a file below its drive is refused.
Thread model: no state but the file system.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from lab.hyperv_host.errors import NotFoundError, ParameterError

if TYPE_CHECKING:
    from lab.hyperv_host.smb_client import SmbPlace

_SHARE = re.compile(r"(\\\\[A-Za-z0-9._-]+\\[A-Za-z0-9._$-]+)((?:\\[^\\/:*?\"<>|\x00-\x1f]+)+)")
_PATH = re.compile(r"([A-Za-z]):\\((?:[^\\/:*?\"<>|\x00-\x1f]+\\)*[^\\/:*?\"<>|\x00-\x1f]*)")


@dataclass(frozen=True, slots=True)
class WindowsPath:
    """Absolute, without a trailing backslash (except that of a drive)."""

    text: str

    @classmethod
    def parse(cls, text: str) -> WindowsPath:
        """Raises ParameterError."""
        if _SHARE.fullmatch(text) and ".." not in text.split("\\"):
            return cls(text)
        match = _PATH.fullmatch(text)
        parts = match[2].split("\\") if match else [".."]
        if any(part in (".", "..") or part.endswith((" ", ".")) for part in parts if part):
            raise ParameterError(f"Illegal characters in path '{text}'.")
        drive, rest = text[0].upper(), text[3:].rstrip("\\")
        return cls(f"{drive}:\\{rest}")

    @property
    def share(self) -> str:
        """`\\\\server\\share`; empty: it is on a drive."""
        match = _SHARE.fullmatch(self.text)
        return match[1] if match else ""

    @property
    def drive(self) -> str:
        return self.text[0]

    @property
    def parts(self) -> list[str]:
        inside = self.text[len(self.share) :] if self.share else self.text[3:]
        return [part for part in inside.split("\\") if part]

    @property
    def name(self) -> str:
        return self.text.rpartition("\\")[2]

    @property
    def stem(self) -> str:
        return self.name.rpartition(".")[0] or self.name

    @property
    def folder(self) -> WindowsPath:
        if self.share:
            return WindowsPath(self.text.rpartition("\\")[0])
        return WindowsPath(self.text.rpartition("\\")[0] if len(self.parts) > 1 else self.text[:3])

    def joined(self, *names: str) -> WindowsPath:
        return WindowsPath("\\".join([self.text.rstrip("\\"), *names]))

    def same(self, other: WindowsPath) -> bool:
        return self.text.lower() == other.text.lower()

    def inside(self, folder: WindowsPath) -> bool:
        return self.text.lower().startswith(folder.text.rstrip("\\").lower() + "\\")

    def __str__(self) -> str:
        return self.text


class Network(Protocol):
    def file(self, path: WindowsPath) -> SmbPlace:
        """Raises NotFoundError."""
        ...


class _NoNetwork:
    def file(self, path: WindowsPath) -> SmbPlace:
        raise NotFoundError(f"The network path '{path.share}' was not found.")


class Volumes:
    def __init__(self, folder: Path, drives: str) -> None:
        self.folder = folder
        self.drives = drives
        self.network: Network = _NoNetwork()
        for drive in drives:
            folder.joinpath(drive).mkdir(parents=True, exist_ok=True)

    def file(self, path: WindowsPath) -> Path | SmbPlace:
        """As `place`, also for a file of a share. Raises NotFoundError: nothing is mapped there."""
        return self.network.file(path) if path.share else self.place(path)

    def place(self, path: WindowsPath) -> Path:
        """Where the file is, or would be. Raises NotFoundError: no such drive."""
        if path.drive not in self.drives:
            raise NotFoundError(f"Cannot find drive '{path.drive}'.")
        here = self.folder / path.drive
        for part in path.parts:
            exact = here / part
            if not exact.exists() and here.is_dir():
                wanted = part.lower()
                exact = next((one for one in here.iterdir() if one.name.lower() == wanted), exact)
            here = exact
        return here

    def existing(self, path: WindowsPath) -> Path:
        """Raises NotFoundError."""
        place = self.place(path)
        if not place.exists():
            raise NotFoundError(f"Cannot find path '{path}' because it does not exist.")
        return place

    def existing_file(self, path: WindowsPath) -> Path | SmbPlace:
        """As `existing`, also for a file of a share. Raises NotFoundError."""
        if not path.share:
            return self.existing(path)
        place = self.file(path)
        if not place.exists():
            raise NotFoundError(f"Cannot find path '{path}' because it does not exist.")
        return place
