"""Finding the VM that we run in, in the vCenter that a disk is to be read from.

Its SMBIOS uuid is `config.uuid`, with the first three fields byte-swapped by newer firmware; both
readings are tried. Clones may share that uuid, so more than one hit is none: attaching a disk to
the wrong VM must not happen.

Source: DMTF DSP0134 7.2.1 (System UUID, byte order since 2.6); vSphere API reference, SearchIndex.
"""

from __future__ import annotations

import uuid
from enum import Enum

from vmware.session import Session


class Whereabouts(Enum):
    """Why the VM that we run in is not known."""

    NO_UUID = "this machine shows no SMBIOS uuid, so it is no VM or we do not run as root"
    NOT_HERE = "this machine is no VM of this vCenter"
    AMBIGUOUS = "several VMs of this vCenter have the SMBIOS uuid of this machine"


def readings(shown: str) -> tuple[str, ...]:
    """Both byte orders of a SMBIOS uuid as text; () for what is none. Pure."""
    try:
        straight = uuid.UUID(shown)
    except ValueError:
        return ()
    if straight.int in (0, (1 << 128) - 1):  # not set, says the standard
        return ()
    return (str(straight), str(uuid.UUID(bytes=straight.bytes_le)))


def find_appliance_vm(session: Session, shown: str | None) -> str | Whereabouts:
    """The moref of the one VM with this SMBIOS uuid. Raises VsphereError."""
    candidates = readings(shown) if shown else ()
    if not candidates:
        return Whereabouts.NO_UUID
    index = session.content.searchIndex
    found = {
        str(vm._GetMoId())
        for candidate in dict.fromkeys(candidates)
        for vm in session.read(
            "look for the appliance's own VM", index.FindAllByUuid, None, candidate, True, False
        )
        or []
    }
    if len(found) == 1:
        return found.pop()
    return Whereabouts.AMBIGUOUS if found else Whereabouts.NOT_HERE
