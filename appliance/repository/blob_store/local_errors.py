"""The one translation of operating-system errors of a local repository into ours."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from appliance.base.errors import StorageError, StorageFullError

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR})
_BAD_MEDIUM = frozenset(  # of a read: a bad sector; a checksum of the file system or the disk
    {errno.EIO, errno.ENODATA, errno.EBADMSG, errno.EUCLEAN, errno.EILSEQ}
)


def is_absent(error: OSError) -> bool:
    """Whether the name is not there, be it for a missing folder or a file in a folder's place."""
    return error.errno in _ABSENT or isinstance(error, FileNotFoundError)


def is_bad_medium(error: OSError) -> bool:
    """Whether a read failed for the bytes it asked for, not because the storage is away."""
    return error.errno in _BAD_MEDIUM


def storage_error(path: Path, error: OSError) -> StorageError | StorageFullError:
    kind = StorageFullError if error.errno in _FULL else StorageError
    reason = os.strerror(error.errno) if error.errno else str(error)
    return kind(f"{path}: {reason}")
