"""Power operations: on, off, reset, guest shutdown, and what follows when a guest ends by itself.

The .vmx remembers where the VM was last (`uuid.location`); a VM that was copied or moved blocks
its power-on with the question `msg.uuid.altered`, unless `uuid.action` says what to do.
Source: design notes on vSphere, section 5 "UUID question".
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import logging
import threading
import uuid as uuids
from dataclasses import replace
from typing import Any

from lab.esx.datastore_path import DatastorePath
from lab.esx.delta_files import make_delta
from lab.esx.disk_chain import DiskChain, open_chain
from lab.esx.errors import HostError, NoSpaceError
from lab.esx.file_locks import LockMode
from lab.esx.guest import Guest
from lab.esx.hardware import DiskMode, VmConfig
from lab.esx.machine import Machine, MachineConfigError
from lab.esx.nas_presence import NasPresence
from lab.esx.site import Work
from lab.esx.virtual_machine import VirtualMachine
from lab.esx.vm_state import Choice, NotSupportedError, PowerState, Question, VmStateError
from lab.esx.vmx import new_mac, spaced
from lab.faults import FaultName

_COPIED, _MOVED, _CANCEL = "button.uuid.copiedTheVM", "button.uuid.movedTheVM", "button.cancel"
_RETRY, _ABORT = "button.retry", "button.abort"
_questions = itertools.count(1)
log = logging.getLogger(__name__)


class ToolsUnavailableError(HostError):
    """VMware Tools are not running."""

    fault = "ToolsUnavailable"


def power_on(vm: VirtualMachine, work: Work) -> None:
    """Blocks while a question waits. The guest has started to boot when this returns."""
    with vm.operation("PowerOn"):
        vm.refuse_unless(PowerState.OFF)
        if vm.config.template:
            raise NotSupportedError("a template cannot be powered on")
        _settle_location(vm, work)
        if vm.site.faults.take(FaultName.POWER_ON_FAILURE, vm=vm.vm_id, vm_name=vm.config.name):
            raise MachineConfigError("the virtual machine could not be powered on")
        chains = {disk.key: vm.chain(disk) for disk in vm.config.disks}
        presence = _lock(vm, chains)
        try:
            for disk in vm.config.disks:
                if disk.mode is not DiskMode.INDEPENDENT_NONPERSISTENT:
                    chains[disk.key] = presence.mark_written(chains[disk.key])
            vm.make_nvram()
            make_swap(vm)
            _start(vm, chains)
        except BaseException:
            drop_swap(vm)
            _drop_redo_logs(vm)
            vm.leave_datastores()
            vm.site.locks.release(vm.vm_id)
            raise
        vm.write_log("PowerOn")


def power_off(vm: VirtualMachine) -> None:
    """Pull the plug: the guest loses what it had not flushed, the host keeps its files in order."""
    vm.refuse_if_appliance()
    with vm.operation("PowerOff", wait=vm.question is None):
        vm.refuse_unless(PowerState.ON)
        stop_machine(vm)


def reset(vm: VirtualMachine) -> None:
    vm.refuse_if_appliance()
    with vm.operation("Reset"):
        vm.refuse_unless(PowerState.ON)
        assert vm.machine is not None
        vm.machine.reset()


def shut_down_guest(vm: VirtualMachine) -> None:
    """Ask the guest; returns at once. Raises ToolsUnavailableError."""
    vm.refuse_unless(PowerState.ON)
    machine = vm.machine
    if machine is None or not vm.guest_info.tools_running:
        raise ToolsUnavailableError("VMware Tools are not running")
    machine.press_power_button()


def stop_machine(vm: VirtualMachine) -> None:
    """End the running machine in order; the caller has the VM's operation."""
    machine, guest = vm.machine, vm.guest
    assert machine is not None
    vm.machine = None  # so that its end is not taken for a crash
    if guest is not None:
        guest.close()
    if vm.reachable:
        with contextlib.suppress(HostError):  # a dead QEMU: tracking stays marked open
            machine.stop()
            vm.keep_written(machine)
        machine.end()
    else:
        machine.close()  # it would wait for its disks for ever
    _ended(vm)
    vm.write_log("PowerOff")


def _lock(vm: VirtualMachine, chains: dict[int, DiskChain]) -> NasPresence:
    """Hold the machine's files against the rest of the lab, and against other hosts."""
    wanted = [(vm.config.vmx_path, LockMode.SHARED)]
    for chain in chains.values():
        wanted += chain.locks(LockMode.EXCLUSIVE)
    vm.site.locks.acquire(vm.vm_id, wanted)
    try:
        return vm.enter_datastores(chains)
    except BaseException:
        vm.site.locks.release(vm.vm_id)
        raise


def _start(vm: VirtualMachine, chains: dict[int, DiskChain]) -> None:
    datastores = vm.site.datastores
    for disk in vm.config.disks:
        if disk.mode is DiskMode.INDEPENDENT_NONPERSISTENT:
            redo = make_delta(datastores, _redo_path(vm, disk.path), chains[disk.key].leaf)
            chains[disk.key] = DiskChain(files=(redo, *chains[disk.key].files))
    vm.reload_tracking()
    fields = {"vm": vm.vm_id, "vm_name": vm.config.name}
    guest = Guest(
        lambda: vm.changed(),
        silent=vm.site.faults.take(FaultName.TOOLS_SILENT, **fields) is not None,
        heartbeat_s=vm.site.heartbeat_s,
    )
    machine = Machine(
        vm.config,
        chains,
        datastores,
        vm.run_folder,
        on_line=guest.hear,
        on_event=lambda name, data: _event(vm, guest, name, data),
        on_end=lambda: _spawn(_crashed, vm, guest),
    )
    vm.machine, vm.guest = machine, guest
    try:
        vm.start_tracking_where_due()
        guest.start(machine)
        machine.run()
    except BaseException:
        vm.machine, vm.guest = None, None
        guest.close()
        machine.close()
        raise
    vm.power, vm.boot_time = PowerState.ON, vm.site.now()


def _event(vm: VirtualMachine, guest: Guest, name: str, data: dict[str, Any]) -> None:
    """On QEMU's reader thread: nothing here may wait."""
    if name == "SHUTDOWN" and data.get("guest"):
        _spawn(_guest_ended, vm, guest)
    elif name == "RESET":
        guest.restarted()
    elif name == "BLOCK_IO_ERROR" and data.get("nospace") and data.get("action") == "stop":
        _spawn(_out_of_space, vm, guest)


def _spawn(action: Any, vm: VirtualMachine, guest: Guest) -> None:
    threading.Thread(target=action, args=(vm, guest), name="lab-power", daemon=True).start()


def _out_of_space(vm: VirtualMachine, guest: Guest) -> None:
    """A datastore is full: the guest stands still until somebody answers."""
    if not vm.may_ask.acquire(blocking=False):
        return  # asked already; each write that failed says so
    try:
        answer = vm.ask(_space_question(vm.config), lambda _: vm.guest is not guest)
    except VmStateError:
        return  # it was powered off
    finally:
        vm.may_ask.release()
    if answer == _RETRY:
        _go_on(vm)
    else:
        _guest_ended(vm, guest)


def _go_on(vm: VirtualMachine) -> None:
    machine = vm.machine
    if machine is not None:
        with contextlib.suppress(HostError):  # it ended meanwhile
            machine.run()


def _guest_ended(vm: VirtualMachine, guest: Guest) -> None:
    with vm.operation("guest shutdown", wait=True):
        if vm.guest is guest and vm.machine is not None:
            stop_machine(vm)


def _crashed(vm: VirtualMachine, guest: Guest) -> None:
    with vm.operation("crash", wait=True):
        machine = vm.machine
        if vm.guest is not guest or machine is None:
            return
        vm.machine = None
        guest.close()
        machine.close()
        _ended(vm)
        log.warning("the QEMU of %s ended unexpectedly, %s", vm.config.name, machine.end_text)
        vm.write_log(f"The virtual machine process ended unexpectedly, {machine.end_text}")


def make_swap(vm: VirtualMachine) -> None:
    """The swap file of a running machine, as long as its unreserved memory; it takes no space.

    None is made where the host keeps it, or it is elsewhere (nowhere, in the lab).

    Raises:
        NoSpaceError: the datastore could not hold it.
    """
    config = vm.config
    if config.swap_placement == "hostLocal" or config.extra.get("sched.swap.dir"):
        return
    path = vm.file(".vswp")
    vm.site.datastores.delete_if_there(path)
    size_bytes = max(0, config.memory_mib - _reserved_mib(config)) << 20
    free_bytes = vm.site.datastores.get(path.datastore).space().free_bytes
    if free_bytes < size_bytes:
        raise NoSpaceError(
            f"{path} needs {size_bytes} bytes, there are {free_bytes}", datastore=path.datastore
        )
    vm.site.datastores.files_of(path).create(path.path, size_bytes)


def _reserved_mib(config: VmConfig) -> int:
    if config.extra.get("sched.mem.pin", "").upper() == "TRUE":
        return config.memory_mib
    reserved = config.extra.get("sched.mem.min", "")
    return int(reserved) if reserved.isdecimal() else 0


def drop_swap(vm: VirtualMachine) -> None:
    with contextlib.suppress(HostError):
        vm.site.datastores.delete_if_there(vm.file(".vswp"))


def _ended(vm: VirtualMachine) -> None:
    drop_swap(vm)
    _drop_redo_logs(vm)
    vm.leave_datastores()
    vm.site.locks.release(vm.vm_id)
    vm.guest = None
    vm.power, vm.boot_time = PowerState.OFF, None
    vm.reload_tracking()


def _redo_path(vm: VirtualMachine, path: DatastorePath) -> DatastorePath:
    return path.sibling(f"{path.name.removesuffix('.vmdk')}-REDO-{vm.vm_id}.vmdk")


def _drop_redo_logs(vm: VirtualMachine) -> None:
    for disk in vm.config.disks:
        if disk.mode is DiskMode.INDEPENDENT_NONPERSISTENT:
            path = _redo_path(vm, disk.path)
            with contextlib.suppress(HostError):
                for file in open_chain(vm.site.datastores, path).leaf.own_files:
                    vm.site.datastores.delete_if_there(file)


def _settle_location(vm: VirtualMachine, work: Work) -> None:
    """Ask when the VM is not where its .vmx says it was."""
    config = vm.config
    here = location_of(config)
    there = config.extra.get("uuid.location", "")
    fields = {"vm": vm.vm_id, "vm_name": config.name}
    forced = vm.site.faults.take(FaultName.QUESTION, **fields)
    if there == here and not forced:
        return
    action = config.extra.get("uuid.action", "")
    if (there or forced) and action not in ("keep", "create"):
        answer = vm.ask(_uuid_question(config), work.wait_cancelled)
        if answer == _CANCEL:
            raise VmStateError("the operation was cancelled by the answer to a question")
        action = "create" if answer == _COPIED else "keep"
    if action == "create":
        config = replace(
            config,
            uuid=str(uuids.uuid4()),
            nics=tuple(
                nic if nic.address_type == "manual" else replace(nic, mac=new_mac())
                for nic in config.nics
            ),
        )
    vm.save(replace(config, extra={**config.extra, "uuid.location": here}))


def location_of(config: VmConfig) -> str:
    digest = hashlib.sha256(str(config.vmx_path).encode()).digest()[:16]
    return spaced(str(uuids.UUID(bytes=digest)))


def _uuid_question(config: VmConfig) -> Question:
    return Question(
        id=str(next(_questions)),
        message_id="msg.uuid.altered",
        text=(
            f"This virtual machine might have been moved or copied. In order to configure certain"
            f" management and networking features, VMware ESX needs to know if this virtual"
            f" machine was moved or copied. If you don't know, answer 'I Copied It'."
            f" ({config.name})"
        ),
        choices=(
            Choice(key=_CANCEL, label="Cancel", summary="Cancel"),
            Choice(key=_MOVED, label="I Moved It", summary="I Moved It"),
            Choice(key=_COPIED, label="I Copied It", summary="I Copied It"),
        ),
        default_index=2,
    )


def _space_question(config: VmConfig) -> Question:
    return Question(
        id=str(next(_questions)),
        message_id="msg.hbacommon.outofspace",
        text=(
            f"There is no more space for virtual disk of {config.name}. You might be able to"
            f" continue this session by freeing disk space on the relevant volume, and clicking"
            f" Retry. Click Cancel to terminate this session."
        ),
        choices=(
            Choice(key=_RETRY, label="Retry", summary="Retry"),
            Choice(key=_ABORT, label="Cancel", summary="Cancel"),
        ),
        default_index=0,
    )
