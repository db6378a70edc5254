"""What verifications of jobs keep beside their certificates: screenshots, logs, reports.

    HOME/verify/<run id>/…

A certificate holds the hashes of its evidence and stays for ever; the evidence goes after
`KEPT_FOR`. Thread model: any thread; removing twice is removing once.
"""

from __future__ import annotations

import os
import shutil
from datetime import datetime, timedelta
from pathlib import Path

from appliance.base.errors import StorageError

KEPT_FOR = timedelta(days=90)


def remove_old_evidence(folder: Path, now: datetime) -> int:
    """Remove the folders of runs that ended long ago; return how many. Raises StorageError."""
    before = (now - KEPT_FOR).timestamp()
    removed = 0
    try:
        for entry in os.scandir(folder):
            if entry.is_dir(follow_symlinks=False) and entry.stat().st_mtime < before:
                shutil.rmtree(entry.path)
                removed += 1
    except FileNotFoundError:
        return removed
    except OSError as error:
        raise StorageError(f"{folder}: {os.strerror(error.errno or 0)}") from error
    return removed
