"""A lab guest as the files of a virtual machine in a datastore, ready to be registered.

The raw image becomes the flat extent of a VMDK, copied sparsely; what a host would have written
beside it (.vmx, .nvram) is written beside it.
"""

from __future__ import annotations

import hashlib
import uuid
from pathlib import Path

from lab.esx.datastore import Datastores, LabDatastore
from lab.esx.datastore_path import DatastorePath
from lab.esx.files import LocalFiles
from lab.esx.hardware import Controller, ControllerKind, Disk, Nic, VmConfig
from lab.esx.machine import FORWARD_SETTING
from lab.esx.vmdk import flat_descriptor, new_uuid
from lab.esx.vmx import format_vmx, settings_of
from lab.guests import copy_sparse

_NVRAM = b"MRVN".ljust(8684, b"\0")  # what a host writes for a BIOS


def write_guest(
    datastores: Datastores,
    store: LabDatastore,
    image: Path,
    name: str,
    *,
    network: str,
    memory_mib: int,
    forwarded_ports: tuple[int, ...] = (),
    guest_id: str = "debian12_64Guest",
) -> DatastorePath:
    """Return the path of the .vmx. The folder must not exist yet."""
    assert isinstance(store.files, LocalFiles)
    folder = store.path(name)
    datastores.make_folders(folder)
    capacity_bytes = image.stat().st_size
    descriptor = flat_descriptor(name, capacity_bytes, uuid=new_uuid())
    copy_sparse(image, store.files.local_path(f"{name}/{descriptor.extent_name}"))
    disk_path = folder.child(f"{name}.vmdk")
    datastores.write_text(disk_path, descriptor.text())
    store.files.replace(f"{name}/{name}.nvram", _NVRAM)
    controller = Controller(kind=ControllerKind.PVSCSI, bus_number=0)
    config = VmConfig(
        name=name,
        vmx_path=folder.child(f"{name}.vmx"),
        uuid=str(uuid.uuid4()),
        instance_uuid=str(uuid.uuid4()),
        guest_id=guest_id,
        memory_mib=memory_mib,
        disk_uuid_enabled=True,
        controllers=(controller,),
        disks=(
            Disk(
                key=controller.disk_key(0),
                controller_key=controller.key,
                unit=0,
                path=disk_path,
                capacity_bytes=capacity_bytes,
                label="Hard disk 1",
                uuid=descriptor.uuid,
            ),
        ),
        nics=(
            Nic(
                key=4000,
                kind="vmxnet3",
                network=network,
                mac=_mac_of(name),
                label="Network adapter 1",
            ),
        ),
        extra={
            "nvram": f"{name}.nvram",
            FORWARD_SETTING: ",".join(str(port) for port in forwarded_ports),
        },
    )
    datastores.write_text(config.vmx_path, format_vmx(settings_of(config)))
    return config.vmx_path


def _mac_of(name: str) -> str:
    """In the range that vCenter generates from; the same for the same name."""
    digest = hashlib.sha256(name.encode()).digest()
    return f"00:50:56:{0x80 | digest[0] & 0x3F:02x}:{digest[1]:02x}:{digest[2]:02x}"
