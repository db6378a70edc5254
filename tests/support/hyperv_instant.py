"""Instant recovery on the practice Hyper-V host, as its tests do it.

The guest numbers its writes and says which ones it saw durable. So a lost write shows.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from appliance.base.run_context import CancelToken
from appliance.exports.datastore.session import SessionStore
from appliance.jobs.instant_recovery import wanted_disks
from appliance.repository.repository import Repository
from appliance.service.home import Home
from appliance.service.recoveries import open_recovery_target
from appliance.service.recovery_server import sessions_folder
from appliance.targets.contract import Keep, WantedVmPlace
from appliance.targets.recovery import (
    Breadth,
    RecoveryPlan,
    RecoveryRequest,
    StillThereError,
    TargetState,
)
from lab.guests.journal import read_journal
from lab.hyperv_host.virtual_machine import HypervVm
from lab.hyperv_host.vm_settings import VmState
from tests.support import holdfast_program
from tests.support.hyperv_lab import HypervLab, hyperv_lab
from tests.support.instant_command import instant
from tests.support.iscsi_clients import needs_iscsi, says

SERVE = ("serve", "--bind", "127.0.0.1", "--port", "0", "--nfs-port", "0", "--portmap", "none")
WITHIN_S = 240.0
_ACK = re.compile(r"^ACK (\d+)$")


@dataclass(frozen=True)
class Here:
    lab: HypervLab
    home: Path
    point: str

    def instant(self, verb: str, *words: str) -> Any:
        return instant(self.home, verb, *words)

    def refused(self, verb: str, *words: str) -> str:
        """What the command says on stderr."""
        done = holdfast_program.run(self.home, "instant", verb, *words, expect=None)
        assert done.returncode not in (0, 3)
        return done.stderr

    def plan(self) -> RecoveryPlan:
        """In this process, with nothing wished for."""
        with (
            Home(self.home).open_catalog() as catalog,
            Repository.open(self.home / "repository") as repository,
            open_recovery_target(catalog, self.home, "hv1") as target,
        ):
            manifest = repository.points.find(self.point)
            return target.plan(
                RecoveryRequest(
                    session_id="0a1b2c3d",
                    name="",
                    hardware=manifest.hardware,
                    disks=wanted_disks(manifest),
                    place=WantedVmPlace(),
                    networks=(),
                    isolated=frozenset(),
                    isolate_all=False,
                    unconnected=frozenset(),
                    mac=Keep.AUTO,
                    identity=Keep.AUTO,
                    address="127.0.0.1",
                    breadth=Breadth.HOST,
                )
            )

    def vm(self, name: str) -> HypervVm:
        (found,) = [vm for vm in self.lab.practice.host.vms() if vm.settings.name == name]
        return found


@contextmanager
def instant_on_hyperv(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Here]:
    """A practice host with a VM, registered, and a point of the VM. Skips without iSCSI."""
    needs_iscsi()
    with hyperv_lab(tmp_path_factory.mktemp("volumes")) as lab:
        home = tmp_path_factory.mktemp("home")
        lab.add_tiny("web", start=False)
        known = lab.practice.describe()
        (home / "password").write_text(known["password"])
        holdfast_program.run(home, "repo", "init")
        holdfast_program.run(
            home,
            *("host", "add", "hv1", "--type", "hyperv", "--user", known["user"]),
            *("--address", f"127.0.0.1:{known['port']}", "--smb-port", str(known["smb_port"])),
            *("--password-file", home / "password", "--accept-fingerprint", known["fingerprint"]),
        )
        holdfast_program.run(home, "backup", "vm", "web", "--quiesce", "crash", "--quiet")
        (point,) = holdfast_program.run_json(home, "point", "list")
        yield Here(lab, home, point["point_id"])


def acknowledged(vm: HypervVm) -> int:
    assert vm.machine is not None, "the guest is off"
    with vm.machine.console._state:
        lines = [line for _, line in vm.machine.console._lines]
    return max((int(match[1]) for match in map(_ACK.match, lines) if match), default=0)


def wait_for(vm: HypervVm, number: int) -> None:
    ends_s = time.monotonic() + WITHIN_S
    while acknowledged(vm) < number:
        assert vm.state is VmState.RUNNING, "the guest ended"
        assert time.monotonic() < ends_s, f"{number} was never acknowledged"
        time.sleep(0.05)


def journal(vm: HypervVm) -> list[int]:
    with vm.opened_disks() as disks:
        return read_journal(next(iter(disks.values())))


def tgtd_of(daemon_pid: int) -> int:
    """The child of ours, not anybody's."""
    return int(says("pgrep", "-P", str(daemon_pid), "-x", "tgtd"))


def do_every_step_twice(here: Here, session_id: str) -> None:
    """Of a session with a registered VM, by the target alone; nothing is made twice, and while the
    VM is there, or carries no mark any more, nothing is taken from it."""
    record = SessionStore(sessions_folder(here.home)).get(session_id)
    state, cancel = TargetState(record.target_state), CancelToken()
    with (
        Home(here.home).open_catalog() as catalog,
        Repository.open(here.home / "repository") as repository,
        open_recovery_target(catalog, here.home, "hv1") as target,
    ):
        hardware = repository.points.find(here.point).hardware
        target.mount(state, cancel)
        again = target.register(state, hardware, cancel)
        assert again.key == record.vm_key
        vm = here.vm(record.vm)
        assert len(vm.settings.drives) == 1
        with pytest.raises(StillThereError):
            target.unmount(state)
        marked = vm.settings
        vm.update(replace(marked, notes="somebody's"))
        with pytest.raises(StillThereError):
            target.take_away(state, again.key)
        vm.update(marked)
        for _ in range(2):
            target.take_away(state, again.key)
        for _ in range(2):
            target.unmount(state)


def assert_nothing_is_left(here: Here) -> None:
    practice = here.lab.practice
    assert [vm.settings.name for vm in practice.host.vms()] == ["web"]
    assert not list(practice.host.volumes.folder.glob("*/ProgramData/Holdfast/volumes/*"))
    assert not list((here.home / "sessions").iterdir())
    assert not (here.home / "luns").exists()
    assert here.instant("list")["sessions"] == []
