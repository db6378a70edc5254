"""What can be wrong with a disk file; `code` is stable, the docstring is the operator's text.

Reading and writing raise these and what the caller's own byte source raises, nothing else.
"""

from __future__ import annotations


class DiskFileError(Exception):
    """The disk file could not be used; the message says what and why."""

    code = "disk-file.failed"
    retryable = False


class NotADiskFileError(DiskFileError):
    """The file is neither a VHDX nor a VHD file."""

    code = "disk-file.other-format"


class CorruptDiskFileError(DiskFileError):
    """A structure of the disk file is damaged; `Test-VHD` on the host says more. Restore the file
    from a backup."""

    code = "disk-file.corrupt"

    def __init__(self, where: str, what: str) -> None:
        super().__init__(f"{where}: {what}")
        self.where = where


class TruncatedDiskFileError(CorruptDiskFileError):
    """The disk file is shorter than what it holds says; was it copied completely?"""

    code = "disk-file.truncated"


class UnsupportedDiskFileError(DiskFileError):
    """The disk file needs something that this version does not know; the message names it."""

    code = "disk-file.unsupported"


class ParentMissingError(DiskFileError):
    """A file that this differencing disk builds on was not found; put it where the child names
    it."""

    code = "disk-file.parent-missing"


class ParentMismatchError(DiskFileError):
    """The file found as parent is not the one, or was written to after the child was made. Use the
    parent as it was then; joining these two would give a disk that never existed."""

    code = "disk-file.parent-mismatch"


class NotUpdatableError(DiskFileError):
    """This disk file cannot be written in place; the message says why. Restore to a new VM."""

    code = "disk-file.not-updatable"


class ReadFailedError(DiskFileError):
    """The storage under a disk file failed to answer; look at its health, then try again."""

    code = "disk-file.read-failed"
    retryable = True


class OutOfDiskError(DiskFileError):
    """A read outside the disk; an error in the program that asked."""

    code = "disk-file.range"

    def __init__(self, offset: int, length: int, size_bytes: int) -> None:
        super().__init__(f"offset {offset}, length {length} of a disk of {size_bytes} bytes")
        self.offset = offset
        self.length = length
        self.size_bytes = size_bytes
