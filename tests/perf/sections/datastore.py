"""A disk of the practice vCenter through datastore HTTPS, against `curl` of the same file.

The lab serves a flat disk of random data. `curl` fetches the file from vCenter to /dev/null over
one connection. The transport alone reads it as a backup would and discards it, once from the host
with tickets, once through vCenter; `backup vm` does the whole of a first backup. Server and clients
share the machine, so the server's share of it is in every figure.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pyVmomi import vim

from tests.perf import holdfast, practice, programs
from tests.perf.context import Bench, Figures, alternate
from tests.perf.programs import NotMeasuredError
from tests.perf.table import Goal, Ratio, Row

NAME = "datastore"
VM = "bench"
DISK_BYTES = 1 << 30
QUICK_BYTES = 256 << 20
_PIECE_BYTES = 8 << 20


def run(bench: Bench) -> list[Row]:
    programs.require("curl")
    size_bytes = QUICK_BYTES if bench.quick else DISK_BYTES
    with (
        bench.folder(NAME) as folder,
        practice.lab(folder) as lab,
        _machine(folder, lab, size_bytes) as vm,
    ):
        practice.register(folder, lab)

        def curl(_number: int) -> Figures:
            took = _curl(folder, lab)
            return {"mb_per_s": size_bytes / took.seconds / 1e6, "cpu_seconds": took.cpu_seconds}

        def backup(number: int) -> Figures:
            repository = folder / f"repository-{number}"
            holdfast.init(repository)
            words: list[str | Path] = ["backup", "vm", VM, "--transport", "datastore-https"]
            words += ["--home", folder, "--repo", repository, "--full", "--json"]
            took = holdfast.call(*words)
            return {"mb_per_s": size_bytes / took.seconds / 1e6, "cpu_seconds": took.cpu_seconds}

        results = alternate(
            bench.rounds,
            {
                "curl": curl,
                "host": lambda _: _read(folder, lab, vm, direct=True),
                "vcenter": lambda _: _read(folder, lab, vm, direct=False),
                "backup": backup,
            },
        )

    def row(measure: str, ours: str, goal: Goal | None = None, **figure: str) -> Row:
        name = figure.get("figure", "mb_per_s")
        return Row(
            section=NAME,
            measure=measure,
            unit="MB/s" if name == "mb_per_s" else "s",
            ours=results.value(ours, name),
            peer="curl",
            theirs=results.value("curl", name),
            divide=Ratio.OURS_BY_PEER,
            goal=goal,
        )

    return [
        row("disk read through the host, tickets", "host", Goal(limit=0.8)),
        row("disk read through vCenter", "vcenter", Goal(limit=0.8)),
        row("processor time of that", "vcenter", figure="cpu_seconds"),
        row("first `backup vm` of it, all in all", "backup"),
    ]


@contextlib.contextmanager
def _machine(home: Path, lab: Mapping[str, Any], size_bytes: int) -> Iterator[Any]:
    """A VM that is off, its disk full of random data."""
    with practice.connection(lab) as instance:
        datacenter = instance.content.rootFolder.childEntity[0]
        pool = datacenter.hostFolder.childEntity[0].resourcePool
        vm = practice.done(datacenter.vmFolder.CreateVM_Task(_spec(size_bytes), pool))
        _fill(home / "lab" / "datastores" / "datastore1" / VM / f"{VM}-flat.vmdk", size_bytes)
        yield vm


def _spec(size_bytes: int) -> Any:
    device = vim.vm.device
    controller = device.ParaVirtualSCSIController(key=-1, busNumber=0, sharedBus="noSharing")
    disk = device.VirtualDisk(
        key=-2,
        controllerKey=-1,
        unitNumber=0,
        capacityInKB=size_bytes >> 10,
        backing=device.VirtualDisk.FlatVer2BackingInfo(fileName="", diskMode="persistent"),
    )
    add = device.VirtualDeviceSpec
    return vim.vm.ConfigSpec(
        name=VM,
        files=vim.vm.FileInfo(vmPathName="[datastore1]"),
        deviceChange=[
            add(operation="add", device=controller),
            add(operation="add", fileOperation="create", device=disk),
        ],
    )


def _fill(flat: Path, size_bytes: int) -> None:
    with flat.open("r+b") as file:
        for _ in range(0, size_bytes, _PIECE_BYTES):
            file.write(os.urandom(_PIECE_BYTES))


def _curl(home: Path, lab: Mapping[str, Any]) -> programs.Run:
    """Name and password go through a file: arguments can be seen by everybody."""
    config = home / "curl.conf"
    config.touch(0o600)
    config.write_text(f'user = "{lab["user"]}:{lab["password"]}"\n')
    path = f"/folder/{VM}/{VM}-flat.vmdk?dcPath=DC0&dsName=datastore1"
    url = f"https://{lab['address']}:{lab['port']}{quote(path, safe='/?=&')}"
    return programs.run(
        ["curl", "--silent", "--fail", "--insecure", "-K", config, "-o", "/dev/null", url]
    )


def _read(home: Path, lab: Mapping[str, Any], vm: Any, *, direct: bool) -> Figures:
    asked = home / "read.json"
    asked.touch(0o600)
    asked.write_text(json.dumps({**lab, "vm": VM, "direct": direct}))
    snapshot = practice.done(vm.CreateSnapshot_Task("bench", "", False, False))
    try:
        took = programs.run([sys.executable, "-m", "tests.perf.read_datastore", asked])
    finally:
        practice.done(snapshot.RemoveSnapshot_Task(False, True))
    figures = json.loads(took.stdout)
    if direct != str(figures.pop("route")).startswith("host "):
        raise NotMeasuredError("the disk was read by another route")
    return {name: float(value) for name, value in figures.items()}
