"""The debian guest: systemd boots, nginx answers, files change when asked."""

from __future__ import annotations

import os
import re
import urllib.request
from pathlib import Path

import pytest

from appliance.sandbox.machine import Machine, PowerOff
from appliance.sandbox.spec import MachineSpec, RawFile
from lab.guests import GuestKind
from tests.support.guest_images import fresh_copy

pytestmark = pytest.mark.integration

BOOT_S = 180.0  # ready in 10 to 25 s under TCG, by how busy the machine is


def fetch(machine: Machine, path: str) -> str:
    url = f"http://127.0.0.1:{machine.forwarded_port(80)}{path}"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=60) as response:
        text: bytes = response.read(64 * 1024)
    return text.decode()


@pytest.mark.timeout(900)  # the first run builds the image
def test_debian_boots_serves_its_page_and_changes_files(tmp_path: Path) -> None:
    """What the demo relies on: a page that names this boot, changes on command, a clean end."""
    if os.geteuid() != 0:
        pytest.skip("building the debian guest needs root")
    disk = fresh_copy(GuestKind.DEBIAN, tmp_path)
    assert disk.stat().st_size == 8 << 30
    assert disk.stat().st_blocks * 512 < 1 << 30
    spec = MachineSpec(disks=(RawFile(path=disk),), forwarded_ports=(80,))
    with Machine(spec, tmp_path) as machine:
        ready = machine.console.wait_for(re.compile(r"^HOLDFAST-READY debian (\S+)$"), BOOT_S)
        assert ready, machine.console.lines[-10:]
        page = fetch(machine, "/")
        assert "debian guest" in page and ready[1] in page
        assert fetch(machine, "/counter.txt") == "0\n"
        machine.send_line("change 3")
        assert machine.console.wait_for(re.compile(r"^CHANGED 1$"), BOOT_S)
        assert "changes: 1" in fetch(machine, "/")
        assert fetch(machine, "/counter.txt") == "1\n"
        assert machine.power_off(BOOT_S) is PowerOff.GRACEFUL
