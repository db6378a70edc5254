"""What can be wrong with an NTFS volume."""

from __future__ import annotations


class NtfsError(Exception):
    """The volume, or the file looked for, is not as expected; the message says what."""
