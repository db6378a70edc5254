"""The practice vCenter for a section: brought up, told to Holdfast, spoken to with pyvmomi."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pyVim.connect import Disconnect, SmartConnect
from pyVim.task import WaitForTask

from tests.perf import holdfast


@contextlib.contextmanager
def lab(home: Path, *guests: str) -> Iterator[Mapping[str, Any]]:
    """The lab's vCenter for the block, as its JSON; `guests` run on it."""
    words = [word for guest in guests for word in ("--guests", guest)] or ["--no-guests"]
    shown = json.loads(holdfast.call("lab", "up", *words, "--json", "--home", home).stdout)
    try:
        yield shown["vcenter"]
    finally:
        holdfast.call("lab", "down", "--home", home)


def register(home: Path, vcenter: Mapping[str, Any]) -> None:
    """Make it the host "lab" of the state folder `home`."""
    password = home / "password"
    password.touch(0o600)
    password.write_text(str(vcenter["password"]))
    words: list[str | Path] = ["host", "add", "lab", "--type", "vsphere", "--home", home]
    words += ["--address", f"{vcenter['address']}:{vcenter['port']}"]
    words += ["--user", str(vcenter["user"]), "--password-file", password]
    holdfast.call(*words, "--accept-fingerprint", str(vcenter["fingerprint"]))


@contextlib.contextmanager
def connection(vcenter: Mapping[str, Any]) -> Iterator[Any]:
    instance = SmartConnect(
        host=vcenter["address"],
        port=vcenter["port"],
        user=vcenter["user"],
        pwd=vcenter["password"],
        thumbprint=vcenter["fingerprint"],
    )
    try:
        yield instance
    finally:
        Disconnect(instance)
        instance._stub.DropConnections()


def done(task: Any) -> Any:
    """Wait for a task of the hypervisor; return its result."""
    WaitForTask(task)
    return task.info.result
