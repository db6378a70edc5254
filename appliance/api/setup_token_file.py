"""The set-up token in a file, for a console in another process; gone with the first account."""

from __future__ import annotations

import os
from pathlib import Path

from appliance.base.atomic import replace_file
from appliance.base.errors import StorageError


class SetupTokenFile:
    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, token: str) -> None:
        """For its owner (and root) only. Raises StorageError."""
        try:
            replace_file(self._path, f"{token}\n".encode(), mode=0o600)
        except OSError as error:
            raise StorageError(f"{self._path}: {os.strerror(error.errno or 0)}") from error

    def remove(self) -> None:
        """Idempotent."""
        self._path.unlink(missing_ok=True)
