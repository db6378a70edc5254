"""The newest virtual hardware that a place can run: a VM of a newer version cannot be made there.

The place's own list is asked (`EnvironmentBrowser`); where there is none, the host's version says.
Source: vSphere API reference, EnvironmentBrowser.QueryConfigOptionDescriptor; Broadcom KB 315655
(virtual hardware by host version).
"""

from __future__ import annotations

from typing import Any

from pyVmomi import vim

from vmware.errors import UnsupportedError
from vmware.properties import fetch_one
from vmware.session import Session

_OF_HOST: tuple[tuple[tuple[int, ...], int], ...] = (
    ((9, 0), 22),
    ((8, 0, 2), 21),
    ((8, 0), 20),
    ((7, 0, 2), 19),
    ((7, 0, 1), 18),
    ((7, 0), 17),
    ((6, 7, 2), 15),
    ((6, 7), 14),
    ((6, 5), 13),
)
_OLDEST = 10


def newest_hardware(session: Session, host_moref: str) -> int:
    """21 for `vmx-21`. Raises VsphereError."""
    what = "ask which virtual hardware can be had"
    host = session.object(vim.HostSystem, host_moref)
    version = "config.product.version"
    read = fetch_one(session, what, host, ("parent", version)).values
    path = "environmentBrowser"  # of its cluster, or of what stands for one
    above = read.get("parent")
    browser = fetch_one(session, what, above, (path,)).values.get(path) if above else None
    if browser is not None:
        try:
            offered = session.read(what, browser.QueryConfigOptionDescriptor) or []
        except UnsupportedError:
            offered = []
        versions = [_number(item) for item in offered if _runs_on(item, host)]
        if any(versions):
            return max(versions)
    return hardware_of_host(str(read.get(version, "")))


def hardware_of_host(version: str) -> int:
    """Of ESXi `8.0.3`; for what is not known, what every host runs. Pure."""
    parts = tuple(int(part) for part in version.split(".") if part.isdecimal())
    return next((number for least, number in _OF_HOST if parts >= least), _OLDEST)


def _number(item: Any) -> int:
    digits = str(item.key or "").removeprefix("vmx-")
    return int(digits) if digits.isdecimal() and item.createSupported is not False else 0


def _runs_on(item: Any, host: Any) -> bool:
    """A list of hosts that is empty means all."""
    hosts = [one._GetMoId() for one in item.host or []]
    return not hosts or host._GetMoId() in hosts
