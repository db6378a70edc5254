"""Parsing of probes, and what a machine is given on its command line."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.base.errors import UsageError
from appliance.sandbox.accelerator import Accelerator, executes_guest_code
from appliance.sandbox.probes import HttpProbe, SerialProbe, TcpProbe, parse_probe
from appliance.sandbox.spec import DiskInterface, MachineSpec, NbdExport, RawFile, command_line


def test_the_three_forms_are_understood() -> None:
    """What the command line documents is what is parsed."""
    assert parse_probe("tcp:22") == TcpProbe(22)
    assert parse_probe("http:80/") == HttpProbe(80, "/")
    assert parse_probe("http:80") == HttpProbe(80, "/")
    assert parse_probe("http:8080/a/b?c=d") == HttpProbe(8080, "/a/b?c=d")
    probe = parse_probe("serial:login: $")
    assert isinstance(probe, SerialProbe)
    assert probe.pattern.pattern == "login: $"


@pytest.mark.parametrize(
    "text",
    [
        *("", "tcp", "tcp:", "tcp:0", "tcp:65536", "tcp:-1", "tcp:+1", "tcp:1 ", "tcp:٣"),
        *("http:80/a b", "http:80/\r\nHost: x", "http:x/", "https:443/ x=1", "udp:53"),
        *("serial:", "serial:(", "serial:" + "a" * 257),
    ],
    ids=repr,
)
def test_anything_else_is_a_usage_error(text: str) -> None:
    """No half-understood probe runs, and none can smuggle a line into a request."""
    with pytest.raises(UsageError):
        parse_probe(text)


@given(st.integers(1, 65535), st.from_regex(r"/[a-z0-9/._-]{0,30}", fullmatch=True))
def test_a_probe_prints_as_it_is_written(port: int, path: str) -> None:
    """A report names the probe in the form that can be pasted back."""
    for text in (f"tcp:{port}", f"http:{port}{path}"):
        assert parse_probe(text).text == text


def arguments_of(spec: MachineSpec, option: str) -> list[str]:
    argv = command_line(spec, Accelerator.TCG, serial_fd=3, qmp_fd=4)
    return [value for name, value in pairwise(argv) if name == option]


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1))
def test_no_path_or_export_name_can_add_an_option(name: str) -> None:
    """Names reach QEMU as JSON strings, whatever commas or quotes they hold."""
    disks = (
        RawFile(path=Path("/images") / f"x{name}"),
        NbdExport(socket_path=Path("/run/nbd.sock"), export=name, reconnect_delay_s=30),
    )
    nodes = [json.loads(node) for node in arguments_of(MachineSpec(disks=disks), "-blockdev")]
    assert nodes[0]["file"]["filename"] == str(disks[0].path)
    assert nodes[1]["file"]["export"] == name
    assert nodes[1]["file"]["reconnect-delay"] == 30
    assert not any("cache" in node or "cache" in node["file"] for node in nodes)


def test_the_network_is_restricted_and_forwards_only_to_loopback() -> None:
    """Exactly the declared ports are let in, each once."""
    spec = MachineSpec(disks=(RawFile(path=Path("a")),), forwarded_ports=(80, 22, 80))
    (network,) = arguments_of(spec, "-netdev")
    assert network.split(",") == [
        *("user", "id=net0", "restrict=on", "ipv6=off", "dhcpstart=10.0.2.15"),
        *("hostfwd=tcp:127.0.0.1:0-:80", "hostfwd=tcp:127.0.0.1:0-:22"),
    ]


@pytest.mark.parametrize(
    "wrong",
    [
        {"disks": ()},
        {"disks": (RawFile(path=Path("a")),) * 5, "disk_interface": DiskInterface.IDE},
        {"memory_mib": 1},
        {"cpus": 0},
        {"forwarded_ports": (0,)},
    ],
    ids=repr,
)
def test_an_impossible_machine_is_a_usage_error(wrong: dict[str, object]) -> None:
    """It is refused before anything starts."""
    with pytest.raises(UsageError):
        MachineSpec(**{"disks": (RawFile(path=Path("a")),), **wrong})  # type: ignore[arg-type]


def test_an_accelerator_that_cannot_run_is_not_taken(tmp_path: Path) -> None:
    """A missing, failing or hanging QEMU counts as unusable, and a hanging one is ended."""
    hanging = tmp_path / "hangs"
    hanging.write_text("#!/bin/sh\nexec sleep 60\n")
    hanging.chmod(0o755)
    for program in ("/nonexistent/qemu", "true", "false", str(hanging)):
        assert not executes_guest_code(Accelerator.KVM, timeout_s=0.2, program=program)
