"""A running guest whose NBD server is killed: the numbered journal knows what was promised."""

from __future__ import annotations

import random
import re
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from appliance.blocks.overlay import Overlay
from appliance.repository.repository import Repository
from appliance.sandbox.machine import Machine
from appliance.sandbox.probes import parse_probe
from appliance.sandbox.spec import MachineSpec, NbdExport
from lab.guests import GuestKind, read_journal
from tests.support.guest_images import fresh_copy
from tests.support.holdfast_program import run_json, serving
from tests.support.needs import needs

pytestmark = pytest.mark.integration

_KILLS = 3
_LIMIT_S = 120.0
_ACK = re.compile(r"^ACK (\d+)\r?$", re.MULTILINE)


def acknowledged(guest: Machine) -> int:
    """The highest number that the guest has seen durable."""
    numbers = [int(text) for text in _ACK.findall(guest.serial_log_path.read_text("latin-1"))]
    return max(numbers, default=0)


def wait_for_more(guest: Machine, than: int) -> None:
    deadline_s = time.monotonic() + _LIMIT_S
    while acknowledged(guest) <= than:
        assert guest.running, "the guest ended"
        assert time.monotonic() < deadline_s, f"no write was acknowledged after {than}"
        guest.wait(0.05)


def wait_for_line(guest: Machine, text: str) -> None:
    probe = parse_probe(f"serial:{text}")
    deadline_s = time.monotonic() + _LIMIT_S
    while not probe.attempt(guest).ok:
        assert guest.running
        assert time.monotonic() < deadline_s, f"the guest never said {text}"
        guest.wait(0.1)


@pytest.mark.timeout(400)
def test_a_guest_survives_its_server_being_killed_and_loses_nothing(tmp_path: Path) -> None:
    """kill -9 of the server while the guest writes: it is restarted on the same overlay, the
    guest goes on, and every number it saw acknowledged stands on the disk in order."""
    needs("qemu-system-x86_64")
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    source = random.Random(seed)
    disk = fresh_copy(GuestKind.TINY, tmp_path)
    repo = tmp_path / "repository"
    run_json(tmp_path, "repo", "init", "--repo", repo)
    point = run_json(tmp_path, "backup", "image", "--vm", "tiny", disk, "--repo", repo)["point_id"]
    overlay, socket_path = tmp_path / "overlay", tmp_path / "nbd"
    serve = (
        *("export", "nbd", point, "--writable", "--overlay", overlay),
        *("--unix", socket_path, "--repo", repo),
    )
    spec = MachineSpec(
        disks=(NbdExport(socket_path=socket_path, export="disk-0", reconnect_delay_s=60),),
        memory_mib=256,
    )
    machine = Machine(spec, tmp_path)
    with ExitStack() as servers:
        server, _ = servers.enter_context(serving(tmp_path, *serve))
        with machine as guest:
            wait_for_line(guest, "HOLDFAST-READY tiny")
            guest.send_line("journal start")
            for _ in range(_KILLS):
                before = acknowledged(guest)
                wait_for_more(guest, before + source.randrange(1, 40))
                server.kill()
                server.wait()
                server, _ = servers.enter_context(serving(tmp_path, *serve))
            wait_for_more(guest, acknowledged(guest) + 3)
            last = acknowledged(guest)
    with Repository.open(repo) as repository:
        image = repository.open_image(point, 0)
        session = Overlay.open(overlay / "disk-0", image, {"point": point, "disk": 0})
        numbers = read_journal(session)
        session.close()
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) >= last > 0
