"""Who we are on a hypervisor: an id made once per state folder, part of every marker.

Two appliances that share a vCenter know their own snapshots and disks by it, and leave those of
the other alone. A lost state folder means a new id: what the old one left behind is then nobody's,
and stays until a person removes it.
"""

from __future__ import annotations

import os
import re
import uuid
from pathlib import Path
from typing import NewType

from appliance.base.atomic import create_once
from appliance.base.errors import StorageError
from appliance.catalog.errors import CatalogDamagedError

ApplianceId = NewType("ApplianceId", str)
"""A random UUID in its usual form: 36 characters, lower case."""

_TEXT = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def appliance_id(path: Path) -> ApplianceId:
    """Return the id in `path`, making it if there is none; the same for all processes.

    Raises: CatalogDamagedError: something else stands there; StorageError.
    """
    try:
        if not path.exists():
            create_once(path, f"{uuid.uuid4()}\n".encode())
        with path.open("rb") as file:
            text = file.read(64).decode("ascii", "replace").strip()
    except OSError as error:
        raise StorageError(f"{path}: {os.strerror(error.errno or 0)}") from error
    if not _TEXT.fullmatch(text):
        raise CatalogDamagedError(f"{path} does not hold an id")
    return ApplianceId(text)
