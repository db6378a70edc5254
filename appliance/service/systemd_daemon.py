"""The daemon as systemd runs it on the appliance (`appliance.machine.update.DaemonControl`).

Which version answers is asked over the daemon's own socket; and systemd must not have started it
again meanwhile. Source: systemctl(1), systemd.service(5).
"""

from __future__ import annotations

import time
from pathlib import Path

from appliance.machine.errors import MachineCommandError
from appliance.machine.programs import run
from appliance.service.daemon_client import DaemonClient, DaemonUnreachableError

UNIT = "holdfast.service"
_START_S = 400.0  # the unit's own limit is shorter
_WATCHED_S = 10.0
_POLL_S = 1.0


class SystemdDaemon:
    def __init__(self, home: Path) -> None:
        self._client = DaemonClient(home)

    def stop(self) -> None:
        run(["systemctl", "stop", UNIT], timeout_s=_START_S)

    def start(self) -> None:
        run(["systemctl", "reset-failed", UNIT])
        run(["systemctl", "start", UNIT], timeout_s=_START_S)

    def healthy(self, version: str) -> bool:
        restarts = self._restarts()
        ends_s = time.monotonic() + _WATCHED_S
        while time.monotonic() < ends_s:
            if self._version() != version:
                return False
            time.sleep(_POLL_S)
        return self._restarts() == restarts

    def _version(self) -> str:
        try:
            return str(self._client.about().get("version"))
        except DaemonUnreachableError:
            return ""

    def _restarts(self) -> str:
        try:
            return run(["systemctl", "show", "--value", "--property=NRestarts,ActiveState", UNIT])
        except MachineCommandError:
            return "unknown"
