"""Virtual machines of a lab: made, registered from their files, unregistered, destroyed.

Thread model: any thread; the table has a lock, each VM its own operation.
"""

from __future__ import annotations

import contextlib
import threading
import uuid as uuids
from dataclasses import replace

from lab.esx.datastore_path import DatastorePath
from lab.esx.disk_chain import open_chain
from lab.esx.errors import FileMissingError, HostError
from lab.esx.hardware import VmConfig
from lab.esx.site import Site
from lab.esx.snapshot_list import VMSD_BYTES_MAX, read_snapshots
from lab.esx.virtual_machine import VirtualMachine
from lab.esx.vm_state import NotFoundError, PowerState
from lab.esx.vmdk import read_disk_file
from lab.esx.vmx import VMX_BYTES_MAX, InvalidVmxError, config_of, parse_vmx

NAME_CHARS_MAX = 80


class AlreadyExistsError(HostError):
    """There is one of this name, or of these files, already."""

    fault = "AlreadyExists"


class InvalidNameError(HostError):
    """No virtual machine can be called that."""

    fault = "InvalidName"


class VmLibrary:
    def __init__(self, site: Site) -> None:
        self.site = site
        self._lock = threading.Lock()
        self._vms: dict[str, VirtualMachine] = {}

    def list(self) -> list[VirtualMachine]:
        with self._lock:
            return list(self._vms.values())

    def get(self, vm_id: str) -> VirtualMachine:
        with self._lock:
            vm = self._vms.get(vm_id)
        if vm is None:
            raise NotFoundError(f"there is no virtual machine {vm_id}")
        return vm

    def create(self, vm_id: str, config: VmConfig) -> VirtualMachine:
        """Write the files of a VM without disks; its devices come by reconfiguration.

        Raises:
            AlreadyExistsError, InvalidNameError, and what the datastore raises.
        """
        check_name(config.name)
        datastores = self.site.datastores
        self._refuse_known(config.vmx_path)
        if datastores.exists(config.vmx_path):
            raise AlreadyExistsError(f"{config.vmx_path} is there already", name=config.name)
        datastores.make_folders(config.folder)
        return self._begin(VirtualMachine(self.site, vm_id, config))

    def adopt(self, vm: VirtualMachine) -> VirtualMachine:
        """Take in a VM that was made elsewhere, and write its files."""
        return self._begin(vm)

    def _begin(self, vm: VirtualMachine) -> VirtualMachine:
        vm.make_nvram()
        vm.save(replace(vm.config, extra={"nvram": vm.config.nvram_path.name, **vm.config.extra}))
        vm.save_snapshots()
        vm.write_log("Log for VMware ESX version=8.0.3 build=build-24022510")
        return self._add(vm)

    def register(self, vm_id: str, vmx_path: DatastorePath, name: str | None) -> VirtualMachine:
        """Read the .vmx, and the snapshots that the .vmsd beside it lists.

        Raises:
            NotFoundError: there is no such file.
            InvalidVmxError: it is no .vmx, or its disks cannot be opened.
            AlreadyExistsError, InvalidNameError.
        """
        self.site.datastores.get(vmx_path.datastore)
        if not vmx_path.name.endswith(".vmx"):
            raise InvalidVmxError(f"{vmx_path} is no .vmx file")
        self._refuse_known(vmx_path)
        config = self._read(vmx_path, vmx_path)
        if name is not None:
            config = replace(config, name=name)
        check_name(config.name)
        vm = VirtualMachine(self.site, vm_id, config)
        try:
            with contextlib.suppress(FileMissingError):
                text = self.site.datastores.read_text(vm.file(".vmsd"), VMSD_BYTES_MAX)
                vm.snapshots, vm.current_snapshot = read_snapshots(
                    parse_vmx(text), lambda file: self._read(config.folder.child(file), vmx_path)
                )
            vm.save(config)
            vm.reload_tracking()
        except BaseException:
            vm.close()
            raise
        return self._add(vm)

    def unregister(self, vm: VirtualMachine) -> None:
        """Forget the VM, keep its files."""
        with vm.operation("Unregister"):
            vm.refuse_unless(PowerState.OFF)
            with self._lock:
                self._vms.pop(vm.vm_id, None)
            vm.close()

    def destroy(self, vm: VirtualMachine) -> None:
        """Forget the VM and delete its files: disks wherever they are, then its folder.

        Raises:
            FileLockedError: somebody else has a file open; nothing was deleted.
        """
        with vm.operation("Destroy"):
            vm.refuse_unless(PowerState.OFF)
            datastores, locks = self.site.datastores, self.site.locks
            doomed: set[DatastorePath] = set()
            for config in (vm.config, *(one.config for one in vm.snapshots.values())):
                for disk in config.disks:
                    with contextlib.suppress(HostError):
                        chain = open_chain(datastores, disk.path)
                        doomed |= {*chain.paths(), chain.base.track_path}
            for path in vm.orphan_files:
                with contextlib.suppress(HostError):
                    doomed |= set(read_disk_file(datastores, path).own_files)
            folder = vm.config.folder
            with contextlib.suppress(HostError):
                names = [one.name for one in datastores.files_of(folder).list(folder.path)]
                stem = vm.config.file_stem
                doomed |= {folder.child(name) for name in names if _is_own(name, stem)}
            for path in doomed:
                locks.refuse_unless_free(path)
            for path in sorted(doomed):
                datastores.delete_if_there(path)
            with contextlib.suppress(HostError):  # what others put there keeps the folder
                if folder.path:
                    datastores.files_of(folder).delete(folder.path)
            with self._lock:
                self._vms.pop(vm.vm_id, None)
            vm.close()

    def close(self) -> None:
        """End every VM, then unmount what is mounted. Idempotent."""
        self.site.datastores.hurry()
        for vm in self.list():
            vm.close()
        with self._lock:
            self._vms.clear()
        self.site.datastores.close()

    def _read(self, path: DatastorePath, vmx_path: DatastorePath) -> VmConfig:
        try:
            text = self.site.datastores.read_text(path, VMX_BYTES_MAX)
        except FileMissingError as error:
            raise NotFoundError(f"{path} was not found") from error
        except HostError as error:
            raise InvalidVmxError(str(error)) from error
        try:
            return config_of(parse_vmx(text), vmx_path, self._capacity_of)
        except InvalidVmxError:
            raise
        except HostError as error:
            raise InvalidVmxError(f"{path}: {error}") from error

    def _capacity_of(self, path: DatastorePath) -> tuple[int, str, bool]:
        descriptor = open_chain(self.site.datastores, path).leaf.descriptor
        return descriptor.capacity_bytes, descriptor.uuid, descriptor.thin

    def _refuse_known(self, vmx_path: DatastorePath) -> None:
        for vm in self.list():
            if vm.config.vmx_path == vmx_path:
                raise AlreadyExistsError(f"{vmx_path} is registered already", name=vm.config.name)

    def _add(self, vm: VirtualMachine) -> VirtualMachine:
        with self._lock:
            if vm.vm_id in self._vms:
                raise AlreadyExistsError(f"{vm.vm_id} is there already", name=vm.vm_id)
            self._vms[vm.vm_id] = vm
        return vm


def check_name(name: str) -> None:
    if not 0 < len(name) <= NAME_CHARS_MAX or name != name.strip():
        raise InvalidNameError(f"not a name: {name!r}", name=name)


def new_config(name: str, vmx_path: DatastorePath) -> VmConfig:
    return VmConfig(
        name=name,
        vmx_path=vmx_path,
        uuid=str(uuids.uuid4()),
        instance_uuid=str(uuids.uuid4()),
    )


def _is_own(name: str, stem: str) -> bool:
    suffixes = (".vmx", ".vmsd", ".nvram", ".vmxf", ".vmsn", ".png", ".vmdk", ".log")
    return name == "vmware.log" or (name.startswith(stem) and name.endswith(suffixes))
