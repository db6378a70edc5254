"""What the daemon wants to know of the machine's settings, as they are cached.

Thread model: a function; any thread.
"""

from __future__ import annotations

from contextlib import suppress

from appliance.machine.errors import PropertyError
from appliance.machine.layout import Layout
from appliance.machine.settings import MachineSettings

_BYTES_MAX = 1 << 20


def administrator_email(layout: Layout) -> str:
    """Empty: none was given, this is no appliance, or the cache is damaged, as the console says."""
    with suppress(OSError, PropertyError), layout.settings.open("rb") as file:
        return MachineSettings.from_json(file.read(_BYTES_MAX)).admin_email
    return ""
