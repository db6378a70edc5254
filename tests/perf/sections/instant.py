"""Instant recovery in the practice vCenter: its phases, and the boot from our datastore.

A Debian guest is backed up and started with `instant start`; the phases are its own report. Then
the same steps of ours turn on the recovered VM, whose disk is a file on the appliance's NFS
datastore, and a VM on the lab's own datastore with a copy of the same disk: seconds from the call
to the page that the guest serves. The practice host reads our datastore with a client of its own,
which is in the figure. "again": the recovered VM was off in between, so the first boot's reads
are in the appliance's cache.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from lab.control_socket import ask
from lab.lab_folder import LabFolder
from tests.perf import holdfast, practice, programs
from tests.perf.context import Bench, Figures, alternate
from tests.perf.programs import NotMeasuredError, require
from tests.perf.table import Goal, Ratio, Row

NAME = "instant"
GUEST = "debian"
_RECOVERED = "recovered"
_LIMIT_S = 180.0
_PHASES = ("plan", "publish", "serve", "mount", "register")


def run(bench: Bench) -> list[Row]:
    require("qemu-system-x86_64")
    with bench.folder(NAME) as home, practice.lab(home, GUEST) as vcenter:
        practice.register(home, vcenter)
        place: list[str | Path] = ["--home", home, "--json"]
        holdfast.call("repo", "init", "--home", home)
        backed_up = json.loads(holdfast.call("backup", "vm", GUEST, *place).stdout)
        point_id = str(backed_up["vms"][0]["point_id"])
        with _serving(home), practice.connection(vcenter) as instance:
            vms = instance.content.rootFolder.childEntity[0].vmFolder
            raw = _named(vms, GUEST)
            practice.done(raw.PowerOffVM_Task())

            def ours(_number: int) -> Figures:
                words = ["instant", "start", point_id, "--host", "lab", "--name", _RECOVERED]
                started = json.loads(holdfast.call(*words, *place).stdout)
                recovered = _named(vms, _RECOVERED)
                boots = {
                    "ready": _boot(home, recovered),
                    "ready again": _boot(home, recovered),
                }
                holdfast.call("instant", "discard", started["session_id"], *place)
                steps = {step["name"]: float(step["seconds"]) for step in started["steps"]}
                return {**steps, "to power-on": sum(steps.values()), **boots}

            results = alternate(
                bench.rounds,
                {"holdfast": ours, "lab datastore": lambda _: {"ready": _boot(home, raw)}},
            )

    def phase(measure: str, figure: str, goal: Goal | None = None) -> Row:
        value = results.value("holdfast", figure)
        return Row(
            section=NAME, measure=measure, unit="s", ours=value, divide=Ratio.OURS, goal=goal
        )

    def boot(measure: str, figure: str, goal: Goal | None = None) -> Row:
        return Row(
            section=NAME,
            measure=measure,
            unit="s",
            ours=results.value("holdfast", figure),
            peer="lab datastore",
            theirs=results.value("lab datastore", "ready"),
            divide=Ratio.OURS_BY_PEER,
            goal=goal,
        )

    return [
        *(phase(f"`instant start`: {name}", name) for name in _PHASES),
        phase("from the request to the power-on call", "to power-on", Goal(limit=2, at_most=True)),
        boot("debian guest ready after power-on", "ready", Goal(limit=1.15, at_most=True)),
        boot("the same, powered on again", "ready again"),
    ]


def _named(vms: Any, name: str) -> Any:
    return next(vm for vm in vms.childEntity if vm.name == name)


def _boot(home: Path, vm: Any) -> float:
    """Power on, wait for the page, power off; return the seconds to the page."""
    socket_path = LabFolder(home / "lab").socket_path
    assert socket_path is not None, "the lab runs"
    name = str(vm.name)
    started_s = time.perf_counter()
    practice.done(vm.PowerOnVM_Task())
    while not _page_answers(_port(ask(socket_path, "status"), name)):
        if time.perf_counter() - started_s > _LIMIT_S:
            raise NotMeasuredError(f"{name} did not come up")
        time.sleep(0.1)
    took_s = time.perf_counter() - started_s
    practice.done(vm.PowerOffVM_Task())
    return took_s


def _port(status: Mapping[str, Any], name: str) -> int:
    machine = next(each for each in status["vms"] if each["name"] == name)
    return int(machine["ports"].get("80", 0))


def _page_answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
            return bool(answer.read(4096))
    except (OSError, urllib.error.URLError):
        return False


@contextmanager
def _serving(home: Path) -> Iterator[None]:
    """The daemon, serving recovery sessions to the lab's hosts, for the block."""

    def ready(stdout: IO[bytes]) -> bool:
        stdout.seek(0)
        return any(line.startswith(b"}") for line in stdout)

    words = ["serve", "--bind", "127.0.0.1", "--port", "0", "--reserve", "0", "--home", str(home)]
    with programs.server(
        [*holdfast.command(), *words, "--json"], ready=ready, environment=holdfast.CHECKOUT
    ):
        yield
