"""Where a file of many TiB may be, sparse: tmpfs takes any size, ext4 stops at 16 TiB."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest


def huge_file_folder(size_bytes: int) -> Path:
    """Return a folder that takes a sparse file of this size; skip, or fail in CI, without one."""
    for folder in (Path("/dev/shm"), Path(tempfile.gettempdir())):
        try:
            with tempfile.TemporaryFile(dir=folder) as file:
                file.truncate(size_bytes)
                return folder
        except OSError:
            continue
    reason = f"no file system takes a file of {size_bytes} bytes"
    if os.environ.get("HOLDFAST_NO_SKIP"):
        pytest.fail(reason)
    pytest.skip(reason)
