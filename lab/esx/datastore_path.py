"""Datastore paths, `[datastore] folder/file`: parsed once, never able to leave the datastore.

Values; no I/O. Source: vSphere Web Services SDK Programming Guide, "Datastore paths".
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from lab.esx.errors import InvalidPathError

_SHAPE = re.compile(r"\[([^\[\]/]+)\] ?(.*)", re.DOTALL)
_NAME_BYTES_MAX = 255


@dataclass(frozen=True, slots=True, order=True)
class DatastorePath:
    """`path` is relative, with single slashes and no dot parts; empty for the datastore's root."""

    datastore: str
    path: str

    def __post_init__(self) -> None:
        for part in self.path.split("/") if self.path else ():
            too_long = len(part.encode("utf-8", "surrogatepass")) > _NAME_BYTES_MAX
            if part in ("", ".", "..") or too_long or any(ord(char) < 32 for char in part):
                raise InvalidPathError(f"not a path inside a datastore: {str(self)!r}")

    @classmethod
    def parse(cls, text: str) -> DatastorePath:
        """Raises InvalidPathError; a slash at the end is dropped."""
        match = _SHAPE.fullmatch(text)
        if match is None:
            raise InvalidPathError(f"not a datastore path: {text!r}")
        return cls(match[1], match[2].removesuffix("/"))

    def __str__(self) -> str:
        return f"[{self.datastore}] {self.path}"

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def folder(self) -> DatastorePath:
        """The folder that holds this; the root is its own."""
        return DatastorePath(self.datastore, self.path.rpartition("/")[0])

    def child(self, relative: str) -> DatastorePath:
        """Raises InvalidPathError when `relative` has dot parts or is absolute."""
        return DatastorePath(self.datastore, f"{self.path}/{relative}" if self.path else relative)

    def sibling(self, name: str) -> DatastorePath:
        return self.folder.child(name)

    def resolve(self, reference: str) -> DatastorePath:
        """What a file of this folder means by `reference`: a datastore path, or a relative name."""
        return (
            DatastorePath.parse(reference) if reference.startswith("[") else self.child(reference)
        )
