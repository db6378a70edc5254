"""Paths on a vSphere datastore, `[datastore] folder/file.vmdk`, and the URL of such a file.

Invariants: a parsed path is relative, has no empty, `.` or `..` parts and no control characters, so
that what a server or a descriptor names never leads anywhere else.
Thread model: values.
Source: design notes section 4b.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import quote, urlencode

from vmware.errors import InvalidRequestError

_PATH = re.compile(r"\[([^\]]+)\] ?(.*)", re.DOTALL)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_MAX_CHARACTERS = 2048


@dataclass(frozen=True, slots=True)
class DatastorePath:
    datastore: str
    path: str  # relative to the datastore's root, with `/`

    def __post_init__(self) -> None:
        parts = self.path.split("/")
        if (
            not self.datastore
            or len(self.path) > _MAX_CHARACTERS
            or _CONTROL.search(self.datastore + self.path)
            or any(part in ("", ".", "..") for part in parts)
        ):
            raise InvalidRequestError(f"no path of a datastore file: {self.path[:200]!r}")

    @classmethod
    def parse(cls, text: str) -> DatastorePath:
        """Raises InvalidRequestError: not `[datastore] path`."""
        match = _PATH.fullmatch(text)
        if match is None:
            raise InvalidRequestError(f"no path of a datastore file: {text[:200]!r}")
        return cls(match[1], match[2])

    def __str__(self) -> str:
        return f"[{self.datastore}] {self.path}"

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    def sibling(self, name: str) -> DatastorePath:
        """A file in the same folder. Raises InvalidRequestError: not a plain file name."""
        if "/" in name or "\\" in name:
            raise InvalidRequestError(f"{name[:200]!r} does not lie beside {self}")
        folder, slash, _ = self.path.rpartition("/")
        return DatastorePath(self.datastore, f"{folder}{slash}{name}")

    def url_path(self, datacenter_path: str | None) -> str:
        """`/folder/…?dcPath=…&dsName=…`.

        Args:
            datacenter_path: as in the inventory, `Folder/DC`; None: of an ESXi host, which has one.
        """
        query = {} if datacenter_path is None else {"dcPath": datacenter_path.strip("/")}
        query["dsName"] = self.datastore
        return f"/folder/{quote(self.path)}?{urlencode(query, quote_via=quote)}"
