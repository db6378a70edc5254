"""Talking to the daemon of this state folder over its local socket.

Thread model: a client holds nothing between calls; any thread.
"""

from __future__ import annotations

import http.client
import json
import socket
from pathlib import Path
from typing import Any
from urllib.parse import quote

from appliance.base.errors import ApplianceError

_ANSWER_BYTES_MAX = 16 << 20
_ANSWER_S = 120.0


class DaemonUnreachableError(ApplianceError):
    """No daemon answers for this state folder; `holdfast serve` starts it."""

    code = "daemon.unreachable"
    retryable = True


class DaemonRefusedError(ApplianceError):
    """The daemon could not do what was asked; its own words and code are in the message."""

    code = "daemon.refused"


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=_ANSWER_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def socket_path(home: Path) -> Path:
    return home / "daemon.sock"


class DaemonClient:
    def __init__(self, home: Path) -> None:
        self._path = socket_path(home)

    def about(self) -> dict[str, Any]:
        """Version, pid, address, ports of NFS, iSCSI and SMB. Raises DaemonUnreachableError."""
        answer: dict[str, Any] = self._ask("GET", "/v1/daemon")
        return answer

    @property
    def address(self) -> str:
        """See `SessionServer`. Raises DaemonUnreachableError, DaemonRefusedError."""
        return str(self.about()["address"])

    @property
    def iscsi_port(self) -> int:
        """0: it serves none. Raises DaemonUnreachableError."""
        return int(self.about()["iscsi_port"])

    @property
    def smb_port(self) -> int:
        """0: it serves none. Raises DaemonUnreachableError."""
        return int(self.about()["smb_port"])

    def sessions(self) -> list[dict[str, Any]]:
        answer: list[dict[str, Any]] = self._ask("GET", "/v1/sessions")
        return answer

    def serve(self, session_id: str) -> None:
        """Raises DaemonUnreachableError, DaemonRefusedError."""
        self._ask("POST", f"/v1/sessions/{session_id}/serve")

    def withdraw(self, session_id: str) -> None:
        """Raises DaemonUnreachableError, DaemonRefusedError."""
        self._ask("POST", f"/v1/sessions/{session_id}/withdraw")

    def look_at_jobs(self) -> None:
        """Something was saved. Raises DaemonUnreachableError: no daemon, so none need look."""
        self._ask("POST", "/v1/jobs/look")

    def run_job(self, name: str) -> dict[str, Any]:
        """Raises DaemonUnreachableError, DaemonRefusedError."""
        answer: dict[str, Any] = self._ask("POST", f"/v1/jobs/{quote(name, safe='')}/run")
        return answer

    def run(self, run_id: str) -> dict[str, Any]:
        """A run with result and live progress. Raises as `run_job`."""
        answer: dict[str, Any] = self._ask("GET", f"/v1/runs/{quote(run_id, safe='')}")
        return answer

    def cancel_run(self, run_id: str) -> None:
        """Raises as `run_job`."""
        self._ask("POST", f"/v1/runs/{quote(run_id, safe='')}/cancel")

    def _ask(self, method: str, path: str) -> Any:
        connection = _UnixConnection(self._path)
        try:
            connection.request(method, path)
            response = connection.getresponse()
            raw = response.read(_ANSWER_BYTES_MAX)
        except (OSError, http.client.HTTPException) as error:
            raise DaemonUnreachableError(f"{self._path}: {error}") from error
        finally:
            connection.close()
        try:
            document = json.loads(raw)
        except ValueError as error:
            raise DaemonRefusedError(f"HTTP {response.status}") from error
        if response.status != 200:
            raise DaemonRefusedError(f"{document.get('error')} ({document.get('code')})")
        return document
