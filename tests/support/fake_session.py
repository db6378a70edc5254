"""A vSphere session whose server is a few Python functions: for what needs little of SOAP.

    session = FakeSession(port, fingerprint)
    session.properties["vm-1"] = {"datastore": [session.object(vim.Datastore, "ds-1")]}
    session.methods["ExportSnapshot"] = lambda moref: session.object(vim.HttpNfcLease, "lease-1")

A method may raise a vim fault. Whole conversations are tested against the lab and vcsim.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from pyVmomi import vim, vmodl

from vmware.faults import translated
from vmware.session import Endpoint

_Collector = vmodl.query.PropertyCollector


class FakeSession:
    """Only what the transports use of `vmware.session.Session`."""

    def __init__(self, port: int, fingerprint: str, *, is_vcenter: bool = True) -> None:
        self.endpoint = Endpoint(
            address="127.0.0.1", port=port, user="backup", fingerprint_sha256=fingerprint
        )
        self.is_vcenter = is_vcenter
        self.cookie = "0123456789abcdef"
        self.methods: dict[str, Callable[..., Any]] = {"CurrentTime": lambda _moref: None}
        self.properties: dict[str, dict[str, Any]] = {}
        self.calls: list[str] = []
        self._lock = threading.Lock()
        self.content = SimpleNamespace(
            sessionManager=vim.SessionManager("SessionManager", self),
            propertyCollector=_Collector("propertyCollector", self),
        )

    def object(self, kind: Any, moref: str) -> Any:
        return kind(moref, self)

    def call(self, what: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with translated(what):
            return function(*args, **kwargs)

    read = call

    # pyVmomi's stub

    def InvokeMethod(self, mo: Any, info: Any, args: Any) -> Any:
        with self._lock:
            self.calls.append(info.wsdlName)
        if info.wsdlName == "RetrievePropertiesEx":
            return self._page(args[0])
        return self.methods[info.wsdlName](mo._moId, *args)

    def InvokeAccessor(self, mo: Any, info: Any) -> Any:
        with self._lock:
            self.calls.append(info.name)
        return self.properties[mo._moId].get(info.name)

    def _page(self, filters: list[Any]) -> Any:
        objects = []
        for spec in filters[0].objectSet:
            values = self.properties.get(spec.obj._moId, {})
            found = [
                SimpleNamespace(name=path, val=values[path])
                for path in filters[0].propSet[0].pathSet
                if path in values
            ]
            objects.append(SimpleNamespace(obj=spec.obj, propSet=found, missingSet=[]))
        return SimpleNamespace(objects=objects, token=None)
