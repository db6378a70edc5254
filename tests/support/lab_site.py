"""A whole practice vCenter with its data plane and one powered-off VM on real files."""

from __future__ import annotations

import http.client
import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lab.data_plane.data_plane import DataPlane
from lab.esx.datastore import Datastores, LabDatastore
from lab.esx.hardware import ControllerKind
from lab.esx.reconfigure_request import AddController, AddDisk, ReconfigureRequest
from lab.esx.site import Site
from lab.esx.virtual_machine import VirtualMachine as EngineVm
from lab.esx.vm_library import VmLibrary, new_config
from lab.esx.vm_reconfigure import reconfigure
from lab.vcenter.inventory import Inventory, build_inventory, off_runtime, synthetic_config
from lab.vcenter.lab_vcenter import LabVcenter
from lab.vcenter.virtual_machine import VirtualMachine
from tests.support.lab import client

MIB = 1 << 20
DISK_BYTES = 40 * MIB + 512


@dataclass
class LabSite:
    vcenter: LabVcenter
    plane: DataPlane
    site: Site
    library: VmLibrary
    inventory: Inventory
    root: Path
    instance: Any  # pyVmomi's service instance, logged in

    @property
    def content(self) -> Any:
        return self.instance.content

    @property
    def cookie(self) -> dict[str, str]:
        return {"Cookie": self.instance._stub.cookie.split(";")[0]}

    def add_machine(self, name: str = "web", size_bytes: int = DISK_BYTES) -> VirtualMachine:
        """A VM that is off, with one disk holding some data."""
        store = self.inventory.datastores[0].name
        path = self.site.datastores.get(store).path(f"{name}/{name}.vmx")
        engine = self.library.create(name, new_config(name, path))
        add_disk(engine, size_bytes)
        flat = self.root / name / f"{name}-flat.vmdk"
        with flat.open("r+b") as file:
            file.write(os.urandom(MIB))
            file.seek(size_bytes - 512)
            file.write(os.urandom(512))
        place = self.inventory
        machine = VirtualMachine(
            self.vcenter,
            name,
            folder=place.datacenter.vm_folder,
            pool=place.pool,
            host=place.hosts[0],
            config=synthetic_config(),
            runtime=off_runtime(),
        )
        machine.engine = engine
        return machine

    def on_client(self, machine: VirtualMachine) -> Any:
        """The machine as pyVmomi's reference on the logged-in stub."""
        return machine.vim_type(machine.moid, self.instance._stub)


def add_disk(engine: EngineVm, size_bytes: int) -> None:
    controller = AddController(temporary_key=-1, kind=ControllerKind.PVSCSI, bus_number=0)
    disk = AddDisk(controller_key=-1, unit=0, path=None, capacity_bytes=size_bytes, create=True)
    reconfigure(engine, ReconfigureRequest(devices=(controller, disk)))


@contextmanager
def lab_site(folder: Path, **options: Any) -> Iterator[LabSite]:
    """`options` are those of DataPlane."""
    root = folder / "datastore1"
    root.mkdir()
    datastores = Datastores()
    store = LabDatastore("datastore1", root)
    datastores.add(store)
    vcenter = LabVcenter()
    site = Site(
        folder=folder / "run",
        datastores=datastores,
        locks=vcenter.file_locks,
        faults=vcenter.switches,
    )
    library = VmLibrary(site)
    with vcenter:
        inventory = build_inventory(vcenter, hosts=["127.0.1.1", "127.0.1.2"], stores=[store])
        plane = DataPlane(vcenter, site, **options)
        for host in inventory.hosts:
            plane.serve_host(host)
        try:
            with client(vcenter) as instance:
                yield LabSite(vcenter, plane, site, library, inventory, root, instance)
        finally:
            library.close()


def connect(url: str) -> tuple[http.client.HTTPSConnection, str]:
    """A connection to the URL's server, whose certificate nobody checks, and the target."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    parts = urlsplit(url)
    target = parts.path + (f"?{parts.query}" if parts.query else "")
    return http.client.HTTPSConnection(parts.netloc, context=context, timeout=30), target


def fetch(
    url: str,
    method: str = "GET",
    headers: dict[str, str] | None = None,
    body: bytes | None = None,
) -> tuple[int, bytes]:
    """Status and body of one request."""
    connection, target = connect(url)
    try:
        connection.request(method, target, body=body, headers=headers or {})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()
