"""One backup of a VM at a time on this appliance: a locked file per VM in the state folder.

Two at once would be correct (each builds on the point its change list was asked against), but they
would snapshot the VM twice and fight over one journal of a broken run. The lock goes with its
process, whatever killed it. A name becomes a path only as its hash.

Thread model: any thread, any process of one machine.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from appliance.base.atomic import make_folders
from appliance.base.errors import ApplianceError, StorageError
from appliance.base.locked_file import LockMode, try_lock
from appliance.base.run_context import CancelToken

_LOOK_S = 0.5


class VmBusyError(ApplianceError):
    """A backup of this VM is running already. Let it end, or cancel it, then try again."""

    code = "backup.vm-busy"


@contextmanager
def vm_lock(
    folder: Path, vm: str, *, wait_s: float = 0.0, cancel: CancelToken | None = None
) -> Iterator[None]:
    """Hold the VM for the block; wait for it up to `wait_s`.

    Raises: VmBusyError; CancelledError; StorageError.
    """
    path = folder / f"{hashlib.sha256(vm.encode()).hexdigest()[:40]}.lock"
    try:
        make_folders(folder)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StorageError(f"{path}: {os.strerror(error.errno or 0)}") from error
    try:
        cancel = cancel or CancelToken()
        waits = int(wait_s / _LOOK_S)
        while not try_lock(fd, LockMode.EXCLUSIVE):
            if waits <= 0:
                raise VmBusyError(f"a backup of {vm} is running")
            waits -= 1
            cancel.wait(_LOOK_S)
            cancel.check()
        yield
    finally:
        os.close(fd)
