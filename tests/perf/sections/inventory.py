"""Listing the inventory of a vCenter: every VM with its disks, state and places, from login to
logout.

Two servers, 1,000 and 10,000 VMs each: govmomi's simulator and our practice vCenter, each in a
process of its own on the same machine, so most of the time is the server's. Peers are govc's:
`find` reads names only; `object.collect` reads the properties that we read, and prints them.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.perf.context import Bench, Figures, alternate
from tests.perf.programs import NotMeasuredError
from tests.perf.table import Goal, Row
from tests.support.govmomi_build import BuildError, Programs, programs
from tests.support.vcsim import Vcsim, vcsim
from vmware.inventory import VM_PATHS, list_vms

NAME = "inventory"
_SIMULATED = 20  # VMs that vcsim makes; the others are copies
_COUNTS = (1_000, 10_000)
_QUICK_COUNTS = (100,)
_COLLECTED_MAX = 1_000  # vcsim took more than six minutes to give object.collect 10,000 VMs


def run(bench: Bench) -> list[Row]:
    try:
        tools = programs()
    except BuildError as error:
        raise NotMeasuredError(f"no vcsim and govc: {error}") from error
    rows = []
    for count in _QUICK_COUNTS if bench.quick else _COUNTS:
        copies = str(count // _SIMULATED - 1)
        with vcsim("-vm", str(_SIMULATED // 2), "-copies", copies) as server:
            rows += _measured(bench, "vcsim", server, count)
        with _lab(tools, count) as server:
            rows += _measured(bench, "lab", server, count)
    return rows


def _measured(bench: Bench, place: str, server: Vcsim, count: int) -> list[Row]:
    def ours(_: int) -> Figures:
        started = time.perf_counter()
        with server.connect() as session:
            found = len(list_vms(session))
        return _checked(found, count, time.perf_counter() - started)

    def find(_: int) -> Figures:
        started = time.perf_counter()
        found = server.govc("find", "/", "-type", "m").count("\n")
        return _checked(found, count, time.perf_counter() - started)

    def collect(_: int) -> Figures:
        started = time.perf_counter()
        server.govc("object.collect", "-s", "-type", "m", "/", *VM_PATHS)
        return {"seconds": time.perf_counter() - started}

    peers = {"govc find (names only)": find}
    if count <= _COLLECTED_MAX:
        peers["govc object.collect"] = collect
    results = alternate(bench.rounds, {"holdfast": ours, **peers})
    return [
        Row(
            section=NAME,
            measure=f"list {count:,} VMs of {place}".replace(",", " "),
            unit="s",
            ours=results.value("holdfast", "seconds"),
            peer=peer,
            theirs=results.value(peer, "seconds"),
            goal=Goal(limit=1) if read is collect else None,
        )
        for peer, read in peers.items()
    ]


def _checked(found: int, count: int, seconds: float) -> Figures:
    if found != count:
        raise NotMeasuredError(f"{found} VMs found instead of {count}")
    return {"seconds": seconds}


@contextmanager
def _lab(tools: Programs, count: int) -> Iterator[Vcsim]:
    command = [sys.executable, "-m", "tests.perf.lab_inventory", str(count)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin and process.stdout
        try:
            line = process.stdout.readline()
            if not line:
                raise NotMeasuredError("the practice vCenter did not start")
            place = json.loads(line)
            yield Vcsim(
                address=place["address"],
                port=place["port"],
                user=place["user"],
                password=place["password"],
                fingerprint=place["fingerprint"],
                tools=tools,
            )
        finally:
            process.stdin.close()
