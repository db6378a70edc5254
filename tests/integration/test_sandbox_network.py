"""Two real guests on one isolated network: they talk to each other and to nobody else."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from appliance.base.clock import SystemClock
from appliance.base.run_context import CancelToken
from appliance.sandbox.boot import GuestBoot
from appliance.sandbox.network import IsolatedNetwork
from appliance.sandbox.probes import parse_probe
from appliance.sandbox.serial_script import SerialScript, parse_script
from appliance.sandbox.spec import MachineSpec, RawFile, address_of
from lab.guests import GuestKind
from tests.support.guest_images import fresh_copy

pytestmark = pytest.mark.integration

BOOT_S = 90.0


@pytest.fixture(scope="module")
def guests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[GuestBoot]]:
    with ExitStack() as stack:
        network = stack.enter_context(IsolatedNetwork())
        started = []
        for place in range(2):
            folder = tmp_path_factory.mktemp(f"guest-{place}")
            disk = RawFile(path=fresh_copy(GuestKind.TINY, folder))
            spec = MachineSpec(disks=(disk,), memory_mib=256, place=place)
            probes = [parse_probe("serial:HOLDFAST-READY tiny"), parse_probe("http:8080/")]
            guest = GuestBoot(spec, probes, artifact_folder=folder, plug=network.plug(place))
            started.append(stack.enter_context(guest))
        for guest in started:
            assert guest.get_ready(BOOT_S, CancelToken()), guest.machine.console.lines[-5:]
        yield started


def says(guest: GuestBoot, script: SerialScript) -> bool:
    return script.run(guest.machine, 30.0, CancelToken(), SystemClock()) is not None


def test_each_guest_reaches_the_other(guests: list[GuestBoot]) -> None:
    """An application of several machines finds its parts, at addresses known before."""
    for asking, answering in ((0, 1), (1, 0)):
        fetch = parse_script(f"fetch {address_of(answering)} 8080 => FETCH ok")
        assert says(guests[asking], fetch)


def test_no_guest_reaches_the_host_or_a_name_server(guests: list[GuestBoot]) -> None:
    """The network of the group is as closed as that of one machine."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.5)
        port = server.getsockname()[1]
        assert says(guests[1], parse_script(f"fetch 10.0.2.2 {port} => FETCH failed"))
        assert says(guests[1], parse_script("resolve x.example 10.0.2.3 => RESOLVE failed"))
        with pytest.raises(TimeoutError):
            server.accept()


def test_an_address_that_nobody_has_does_not_answer(guests: list[GuestBoot]) -> None:
    """What a production VM knows by address is not there."""
    assert says(guests[0], parse_script(f"fetch {address_of(9)} 8080 => FETCH failed"))
