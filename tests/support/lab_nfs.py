"""NFS datastores for the practice vCenter: a server with port 111 of a loopback address of its own.

ESXi and QEMU ask the portmapper at port 111 and nothing else, so each test's server gets another
address of 127.0.0.0/8, and tests can run beside each other.
"""

from __future__ import annotations

import itertools
import os
import socket
from typing import Any

from pyVmomi import vim

from tests.support.lab_machines import Practice, done
from tests.support.needs import missing_reason, needs

_PORTS = (111, 2049)
_numbers = itertools.count(os.getpid())


def needs_nfs_datastores() -> None:
    needs("qemu-system-x86_64", "qemu-img")
    if os.geteuid() != 0:
        missing_reason("port 111 needs root")


def own_address() -> str:
    """An address of 127.0.0.0/8 whose ports for NFS are free."""
    for number in itertools.islice(_numbers, 1000):
        address = f"127.0.{16 + number // 250 % 200}.{1 + number % 250}"
        if all(_free(address, port) for port in _PORTS):
            return address
    raise AssertionError("no loopback address is free")


def _free(address: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError:
            return False
    return True


def nas_spec(
    address: str, path: str, name: str = "nas", *, mode: str = "readWrite", kind: str = "NFS"
) -> Any:
    return vim.host.NasVolume.Specification(
        remoteHost=address,
        remotePath=path,
        localPath=name,
        accessMode=mode,
        type=kind,
        remoteHostNames=[address],
    )


def hosts_of(lab: Practice) -> list[Any]:
    """The client's references to the hosts."""
    datacenter = lab.instance.content.rootFolder.childEntity[0]
    return list(datacenter.hostFolder.childEntity[0].host)


def mounted(host: Any, spec: Any) -> Any:
    return host.configManager.datastoreSystem.CreateNasDatastore(spec)


def registered(lab: Practice, path: str, host: Any) -> Any:
    """Register a machine on a host from its .vmx."""
    datacenter = lab.instance.content.rootFolder.childEntity[0]
    pool = datacenter.hostFolder.childEntity[0].resourcePool
    return done(datacenter.vmFolder.RegisterVM_Task(path, None, False, pool, host))


def powered_on(lab: Practice, vm: Any) -> None:
    """Power on; a machine that asks is told that it was moved."""
    task = vm.PowerOnVM_Task()
    while task.info.state == "running":
        question = vm.runtime.question
        if question is not None:
            vm.AnswerVM(question.id, "button.uuid.movedTheVM")
            break
    done(task)
