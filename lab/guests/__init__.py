"""Bootable guests for tests, the demo and the practice hypervisors, made of Debian's packages.

`tiny` boots in seconds and keeps a numbered journal, `uefi` is the same for UEFI firmware;
`debian` is systemd and nginx. They print
`HOLDFAST-READY <kind> <boot id>` on the serial line and take commands there (see `files/`).
`python -m lab.guests tiny|debian|uefi` prints the path of the cached image.
"""

from lab.guests.disk import copy_sparse
from lab.guests.image_cache import GuestKind, build, default_cache_folder
from lab.guests.journal import JournalError, read_journal

__all__ = [
    "GuestKind",
    "build",
    "copy_sparse",
    "read_journal",
    "JournalError",
    "default_cache_folder",
]
