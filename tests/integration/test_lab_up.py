"""`holdfast lab up|status|down`: a lab in the background that leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyVim.connect import Disconnect, SmartConnect

from hyperv.host_session import HostSession
from hyperv.inventory import host_facts
from hyperv.winrm_session import Endpoint
from lab.control_socket import ControlError, ask
from tests.support import holdfast_program as holdfast
from tests.support.http_fetch import fetch
from tests.support.needs import needs

pytestmark = pytest.mark.integration


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    holdfast.run(tmp_path, "lab", "down", expect=None)


def up(home: Path) -> Any:
    return holdfast.run_json(home, "lab", "up", "--no-guests")


def run_folder(home: Path) -> Path:
    """Where the running lab has its sockets."""
    return Path(home.joinpath("lab", "run").read_text())


def test_up_says_how_to_reach_a_vcenter_that_answers(home: Path) -> None:
    """url, address, port, user, password and fingerprint are enough to log in."""
    lab = up(home)
    vcenter = lab["vcenter"]
    instance = SmartConnect(
        host=vcenter["address"],
        port=vcenter["port"],
        user=vcenter["user"],
        pwd=vcenter["password"],
        thumbprint=vcenter["fingerprint"],
    )
    assert instance.content.about.apiType == "VirtualCenter"
    Disconnect(instance)
    instance._stub.DropConnections()
    assert vcenter["url"] == f"https://{vcenter['address']}:{vcenter['port']}/sdk"
    assert [vm["name"] for vm in lab["vms"]] == [lab["appliance"]["name"]]


def test_a_second_up_finds_the_first_and_status_agrees(home: Path) -> None:
    """Idempotent: the same process, the same password."""
    first = up(home)
    second = up(home)
    shown = holdfast.run_json(home, "lab", "status")
    assert (first["already_running"], second["already_running"]) == (False, True)
    assert first["pid"] == second["pid"] == shown["pid"]
    assert first["vcenter"] == second["vcenter"] == shown["vcenter"]


def test_a_fault_is_armed_over_the_control_socket(home: Path) -> None:
    """It strikes the running lab once and is counted; a wrong command is refused with a reason."""
    vcenter, control = up(home)["vcenter"], run_folder(home) / "control.sock"
    ask(control, "fault", op="arm", name="dying-host", match={"path": "/folder*"})
    url = f"https://{vcenter['address']}:{vcenter['port']}/folder"
    with pytest.raises(ConnectionError):
        fetch(url)
    assert fetch(url)[0] == 401
    shown = ask(control, "fault", op="list")
    assert (shown["armed"], shown["fired"]) == ([], {"dying-host": 1})
    with pytest.raises(ControlError, match="unknown fault"):
        ask(control, "fault", op="arm", name="dying-hose")


def test_only_its_owner_can_look_into_its_folders(home: Path) -> None:
    """The state, which holds the password, and the control socket are in 0700 folders."""
    up(home)
    folder = home / "lab"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert run_folder(home).stat().st_mode & 0o777 == 0o700
    assert folder.joinpath("state.json").stat().st_mode & 0o777 == 0o600


def test_down_leaves_nothing_behind(home: Path) -> None:
    """No process, no folder; a second down has nothing to do."""
    pid = up(home)["pid"]
    run = run_folder(home)
    assert holdfast.run_json(home, "lab", "down") == {"stopped": True}
    assert not Path("/proc", str(pid), "exe").exists()
    assert list(home.iterdir()) == []
    assert not run.exists()
    assert holdfast.run_json(home, "lab", "down") == {"stopped": False}
    assert holdfast.run_json(home, "lab", "status") == {"running": False}


def test_what_a_killed_lab_left_is_cleared_away_by_the_next_up(home: Path) -> None:
    """kill -9: status says that nothing runs, and up starts a fresh one."""
    first = up(home)
    left = run_folder(home)
    os.kill(first["pid"], signal.SIGKILL)
    second = up(home)
    assert second["pid"] != first["pid"]
    assert second["already_running"] is False
    assert run_folder(home) != left
    assert not left.exists()


def test_an_unknown_guest_is_a_usage_error(home: Path) -> None:
    """Nothing is started for it."""
    done = holdfast.run(home, "lab", "up", "--guests", "tiny,windows", expect=2)
    assert "windows" in done.stderr
    assert not home.joinpath("lab").exists()


def test_a_hyperv_host_stands_beside_the_vcenter_and_goes_with_it(home: Path) -> None:
    """`--hyperv`: address, port, user, password and fingerprint are enough; nothing is left."""
    needs("smbd", "pdbedit")
    hyperv = holdfast.run_json(home, "lab", "up", "--no-guests", "--hyperv")["hyperv"]
    endpoint = Endpoint(
        address=hyperv["address"],
        port=hyperv["port"],
        user=hyperv["user"],
        password=lambda: str(hyperv["password"]),
        fingerprint_sha256=hyperv["fingerprint"],
    )
    session = HostSession(endpoint)
    assert host_facts(session).computer_name == hyperv["computer"]
    session.close()
    run = run_folder(home)
    holdfast.run(home, "lab", "down")
    assert not run.exists()
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, check=True).stdout
    assert os.fsencode(run) not in running
