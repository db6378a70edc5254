"""One operation at a time on a machine of the practice hosts, and what is no operation."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from lab.esx import virtual_machine
from lab.esx.datastore import Datastores
from lab.esx.datastore_path import DatastorePath
from lab.esx.file_locks import FileLocks
from lab.esx.hardware import VmConfig
from lab.esx.site import Site
from lab.esx.virtual_machine import VirtualMachine
from lab.esx.vm_state import TaskInProgressError

PATIENCE_S = 30.0


class WatchedLock:
    """A lock that says when somebody waits for it with a limit."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.awaited = threading.Event()

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        if timeout > 0:
            self.awaited.set()
        return self._lock.acquire(blocking, timeout)

    def release(self) -> None:
        self._lock.release()

    def locked(self) -> bool:
        return self._lock.locked()


@pytest.fixture
def lock() -> WatchedLock:
    return WatchedLock()


@pytest.fixture
def vm(tmp_path: Path, lock: WatchedLock, monkeypatch: pytest.MonkeyPatch) -> VirtualMachine:
    site = Site(folder=tmp_path, datastores=Datastores(), locks=FileLocks())
    config = VmConfig(
        name="web", vmx_path=DatastorePath("ds1", "web/web.vmx"), uuid="", instance_uuid=""
    )
    made = VirtualMachine(site, "vm-1", config)
    monkeypatch.setattr(made, "_operation", lock)
    return made


@pytest.mark.parametrize("noting", ["guest shutdown", "crash"])
def test_an_operation_waits_until_the_host_has_noted_that_a_guest_ended(
    vm: VirtualMachine, lock: WatchedLock, noting: str
) -> None:
    """That is no task, so nobody is told that the machine is busy with one."""
    outcome: list[str] = []

    def power_on() -> None:
        try:
            with vm.operation("PowerOn"):
                outcome.append("powered on")
        except TaskInProgressError as error:
            outcome.append(str(error))

    asking = threading.Thread(target=power_on)
    with vm.operation(noting, wait=True):
        asking.start()
        assert lock.awaited.wait(PATIENCE_S)
        assert outcome == []
    asking.join(PATIENCE_S)
    assert outcome == ["powered on"] and not vm.busy


def test_noting_that_does_not_end_is_a_task_in_progress(
    vm: VirtualMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for ever for a host that hangs."""
    monkeypatch.setattr(virtual_machine, "_BOOKKEEPING_LIMIT_S", 0.01)
    with (
        vm.operation("crash", wait=True),
        pytest.raises(TaskInProgressError, match="busy with crash"),
        vm.operation("PowerOn"),
    ):
        pass


def test_a_second_operation_is_refused_at_once(vm: VirtualMachine, lock: WatchedLock) -> None:
    """As a host does, with the name of the first; nothing waits."""
    with (
        vm.operation("CreateSnapshot"),
        pytest.raises(TaskInProgressError, match="busy with CreateSnapshot"),
        vm.operation("PowerOn"),
    ):
        pass
    assert not lock.awaited.is_set()
