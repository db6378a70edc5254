"""The practice vCenter for tests: started on loopback, and clients of it that nobody here wrote."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from pyVim.connect import Disconnect, SmartConnect
from pyVmomi import vim, vmodl

from lab.vcenter.lab_vcenter import LabVcenter


@contextlib.contextmanager
def client(vcenter: LabVcenter, user: str = "", password: str = "") -> Iterator[Any]:
    """pyVmomi, logged in."""
    instance = SmartConnect(
        host=vcenter.address,
        port=vcenter.port,
        user=user or vcenter.user,
        pwd=password or vcenter.password,
        thumbprint=vcenter.fingerprint,
    )
    try:
        yield instance
    finally:
        with contextlib.suppress(vim.fault.NotAuthenticated):
            Disconnect(instance)
        instance._stub.DropConnections()


def filter_for(view: Any, kind: Any, paths: list[str]) -> Any:
    """A FilterSpec over everything in a view."""
    collector = vmodl.query.PropertyCollector
    traversal = collector.TraversalSpec(
        name="view", type=vim.view.ContainerView, path="view", skip=False
    )
    return collector.FilterSpec(
        objectSet=[collector.ObjectSpec(obj=view, skip=True, selectSet=[traversal])],
        propSet=[collector.PropertySpec(type=kind, pathSet=paths, all=False)],
    )
