"""What can be wrong with a disk image to be backed up; the operator reads the docstrings."""

from __future__ import annotations

from appliance.base.errors import ExternalProgramError, SourceError


class NotADiskError(SourceError):
    """Neither a regular file nor a block device stands there; name one that does."""

    code = "source.not-a-disk"


class ImageFormatError(SourceError):
    """The file is damaged or not of the format asked for. Name the right one with `--format`."""

    code = "source.format"


class ExternalFileError(SourceError):
    """The image takes part of its content from another file, which a guest could have written.

    Convert it to a single file first, or allow external files if you made the image yourself.
    """

    code = "source.external-file"


class SourceReadError(SourceError):
    """The storage under the image failed to answer; look at its health, then back up again."""

    code = "source.read-failed"
    retryable = True


class SourceShrankError(SourceError):
    """The file became shorter while it was read. Back it up while nothing else changes it."""

    code = "source.shrank"


class NbdError(SourceError):
    """An NBD server refused a request or broke the protocol; the message carries its words."""

    code = "source.nbd"

    def __init__(self, message: str, number: int = 0) -> None:
        super().__init__(message)
        self.number = number  # the server's errno, 0 when it broke off


class ImageProgramError(SourceError, ExternalProgramError):
    """qemu-nbd could not open the image; its own words say why."""

    code = "source.program"
