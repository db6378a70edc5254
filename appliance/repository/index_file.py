"""Is the file of the LMDB index whole, as far as LMDB will ever look?

LMDB trusts its pages: a damaged one may crash the process, and touching one beyond the end of the
file certainly does. A file that is shorter than its last page number says need not have been cut,
though: pages that one transaction takes at the end and gives back are counted, but never written
(a collection that removes many rows leaves such a file). Whether something is missing is seen by
reading all of it, in a process of its own.

Thread model: any thread and any process.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import lmdb

DATA = "data.mdb"
_READ_ALL = """
import sys, lmdb
environment = lmdb.open(sys.argv[1], max_dbs=8, readonly=True)
with environment.begin() as txn:
    for name, _ in txn.cursor():
        for _ in txn.cursor(environment.open_db(name, txn, create=False)):
            pass
"""


def survives(program: str, folder: Path) -> bool:
    """Whether a Python program that is given the index's folder ends well, in its own process."""
    search_path = os.pathsep.join(filter(None, sys.path))
    tried = subprocess.run(
        [sys.executable, "-c", program, str(folder)],
        capture_output=True,
        env=os.environ | {"PYTHONPATH": search_path},
        check=False,
    )
    return tried.returncode == 0


def has_all_pages(environment: Any, folder: Path) -> bool:
    """Whether every page that is in use is in the file; if so, the file gets its full length.

    Raises OSError, lmdb.Error.
    """
    path = folder / DATA
    if _missing_bytes(environment, path) <= 0:
        return True
    if not survives(_READ_ALL, folder):
        return False
    with (
        suppress(OSError, lmdb.ReadonlyError),  # else it is read through again next time
        environment.begin(write=True),  # nobody else makes it longer meanwhile
    ):
        missing_bytes = _missing_bytes(environment, path)
        if missing_bytes > 0:
            os.truncate(path, path.stat().st_size + missing_bytes)
    return True


def _missing_bytes(environment: Any, path: Path) -> int:
    pages: int = environment.info()["last_pgno"] + 1  # before the length: files only grow
    page_bytes: int = environment.stat()["psize"]
    return pages * page_bytes - path.stat().st_size
