"""What an ESXi host of the lab refuses, as typed errors.

`fault` is the name of the VMODL fault that `lab.vcenter` answers with; the fields that the fault
carries travel in `fields` under their VMODL names (strings and numbers only). Source of the
names: design notes on vSphere, sections 2 to 5.
"""

from __future__ import annotations


class HostError(Exception):
    """A host refused an operation or failed in it."""

    fault = "SystemError"

    def __init__(self, text: str, **fields: str | int) -> None:
        super().__init__(text)
        self.fields = fields


class InvalidPathError(HostError):
    """The text is not a datastore path, or it leaves the datastore."""

    fault = "InvalidDatastorePath"


class NoDatastoreError(HostError):
    """The host knows no datastore of this name."""

    fault = "InvalidDatastore"


class FileMissingError(HostError):
    """The file or its folder is not there."""

    fault = "FileNotFound"


class FileThereError(HostError):
    """A file of this name is there already."""

    fault = "FileAlreadyExists"


class FileLockedError(HostError):
    """Another holder has the file open in a mode that excludes this use."""

    fault = "FileLocked"


class NoSpaceError(HostError):
    """The datastore is full."""

    fault = "NoDiskSpace"


class FileFaultError(HostError):
    """A file cannot be used as asked."""

    fault = "FileFault"
