"""The error tree: every failure that crosses a module border has a stable code.

`code` is what the command line, the API and the UI show beside the text; `retryable` says whether
the same call may succeed later without anybody changing anything. The docstring of a class is the
text for the operator: what it means and what to do next.
"""

from __future__ import annotations


class ApplianceError(Exception):
    """Something failed; the message says what and where."""

    code = "appliance.error"
    retryable = False


class UsageError(ApplianceError):
    """The request itself is wrong; correct it and call again."""

    code = "usage"


class OutOfRangeError(ApplianceError):
    """A read or write lies outside the disk."""

    code = "blocks.out-of-range"

    def __init__(self, offset: int, length: int, size_bytes: int) -> None:
        super().__init__(f"[{offset}, {offset + length}) lies outside a disk of {size_bytes} bytes")
        self.offset = offset
        self.length = length
        self.size_bytes = size_bytes


class CancelledError(ApplianceError):
    """The run was cancelled; nothing was committed and nothing needs cleaning up."""

    code = "run.cancelled"


class StorageFullError(ApplianceError):
    """The storage is full. Free space or enlarge it, then run again; committed data is intact."""

    code = "storage.full"
    retryable = True


class StorageError(ApplianceError):
    """The storage refused an operation; the message names the file and the system's reason."""

    code = "storage.failed"
    retryable = True


class SourceError(ApplianceError):
    """The disk to be backed up cannot be read; the message names it and the reason."""

    code = "source.failed"


class ExternalProgramError(ApplianceError):
    """A program that Holdfast runs (qemu-nbd, qemu-img, qemu) failed; its last words follow."""

    code = "program.failed"
