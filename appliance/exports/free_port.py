"""A free port, for servers that do not say which one they took."""

from __future__ import annotations

import socket

from appliance.base.errors import StorageError


def free_port(host: str) -> int:
    """Raises StorageError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as found:
            found.bind((host, 0))
            return int(found.getsockname()[1])
    except OSError as error:
        raise StorageError(f"cannot listen on {host}: {error.strerror}") from error
