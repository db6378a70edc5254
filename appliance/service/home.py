"""The state folder: where what lies, and who may look in.

A folder that is made here is for its owner only (0700). One that was there is left as it is, unless
others may write to it: they could exchange the catalog. What is secret in it is 0600 by itself.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from appliance.base.atomic import make_folders
from appliance.base.errors import ApplianceError, StorageError
from appliance.catalog.catalog import Catalog


class UnsafeHomeError(ApplianceError):
    """Others may write to the state folder; take that right from them, or choose another folder."""

    code = "home.unsafe"


@dataclass(frozen=True, slots=True)
class Home:
    path: Path

    def open_catalog(self) -> Catalog:
        """Open the catalog, making folder and catalog if need be; close it when done.

        Raises: UnsafeHomeError, StorageError, and as `Catalog.open`.
        """
        self.prepare()
        return Catalog.open(self.path)

    def prepare(self) -> None:
        """Make the folder if it is not there. Raises UnsafeHomeError, StorageError."""
        try:
            if not self.path.is_dir():
                make_folders(self.path.parent)
                self.path.mkdir(mode=0o700, exist_ok=True)
            mode = self.path.stat().st_mode
        except OSError as error:
            raise StorageError(
                f"{error.filename or self.path}: {os.strerror(error.errno or 0)}"
            ) from error
        if stat.S_IMODE(mode) & 0o022:
            raise UnsafeHomeError(f"{self.path} can be written by others: run chmod go-w on it")
