"""The sandbox with the tiny guest: boot, probes, isolation, journal, and nothing left behind."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.base.errors import CancelledError, UsageError
from appliance.base.run_context import CancelToken
from appliance.sandbox import boot as boot_module
from appliance.sandbox.accelerator import Accelerator, choose_accelerator, executes_guest_code
from appliance.sandbox.boot import boot
from appliance.sandbox.console import LineCursor
from appliance.sandbox.errors import SandboxError
from appliance.sandbox.machine import Machine, PowerOff
from appliance.sandbox.probes import Attempt, ProbedMachine, TcpProbe, parse_probe
from appliance.sandbox.spec import (
    DiskInterface,
    DiskSource,
    MachineSpec,
    NbdExport,
    NicModel,
    RawFile,
)
from lab.guests import GuestKind, read_journal
from tests.support.guest_images import fresh_copy
from tests.support.needs import needs
from tests.support.png import distinct_pixels

pytestmark = pytest.mark.integration

BOOT_S = 90.0  # ready in about 5 s on an idle core; a busy machine gets its time
READY = re.compile(r"^HOLDFAST-READY tiny [0-9a-f-]{36}$")
ACK = re.compile(r"^ACK (\d+)$")


def tiny_spec(disk: DiskSource | Path, **options: object) -> MachineSpec:
    source = RawFile(path=disk) if isinstance(disk, Path) else disk
    return MachineSpec(disks=(source,), memory_mib=256, **options)  # type: ignore[arg-type]


def is_gone(pid: int, timeout_s: float = 10.0) -> bool:
    """True once no such process exists; a zombie of a dead parent is reaped by init."""
    end_s = time.monotonic() + timeout_s
    while Path(f"/proc/{pid}").exists():
        if time.monotonic() > end_s:
            return False
        time.sleep(0.02)
    return True


def boots(machine: Machine) -> bool:
    return machine.console.wait_for(READY, BOOT_S) is not None


def acknowledge(machine: Machine, count: int, cursor: LineCursor) -> int:
    """Wait for `count` more acknowledged numbers; return the last."""
    last = 0
    for _ in range(count):
        match = machine.console.wait_for(ACK, BOOT_S, cursor)
        assert match, machine.console.lines[-5:]
        last = int(match[1])
    return last


def ask(machine: Machine, command: str, answer: str) -> str:
    """Send a serial command; return the line that answers it."""
    cursor = LineCursor()
    machine.console.search(re.compile("(?!)"), cursor)  # only what comes from now on
    machine.send_line(command)
    match = machine.console.wait_for(re.compile(f"^{answer}.*"), BOOT_S, cursor)
    assert match, machine.console.lines[-5:]
    return match[0]


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    return fresh_copy(GuestKind.TINY, tmp_path)


@pytest.fixture(scope="module")
def running_guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    folder = tmp_path_factory.mktemp("guest")
    spec = tiny_spec(fresh_copy(GuestKind.TINY, folder), forwarded_ports=(7777, 8080, 9999))
    with Machine(spec, folder) as machine:
        assert boots(machine)
        yield machine


def test_a_guest_boots_passes_its_probes_and_leaves_evidence(disk: Path, tmp_path: Path) -> None:
    """One call gives times, probe results, a real screenshot and the serial log, and cleans up."""
    texts = ("serial:^HOLDFAST-READY tiny", "tcp:7777", "http:8080/index.html")
    report = boot(
        tiny_spec(disk),
        [parse_probe(text) for text in texts],
        BOOT_S,
        CancelToken(),
        artifact_folder=tmp_path / "evidence",
    )
    assert report.ok and report.ready_s is not None, report
    assert [(result.probe, result.ok) for result in report.probes] == [(t, True) for t in texts]
    assert report.first_serial_byte_s is not None
    assert 0 < report.first_serial_byte_s <= report.ready_s <= BOOT_S
    assert report.power_off is PowerOff.GRACEFUL
    assert report.accelerator is choose_accelerator().accelerator
    assert report.screenshot_path is not None
    assert distinct_pixels(report.screenshot_path.read_bytes()) >= 2
    assert b"HOLDFAST-READY tiny" in report.serial_log_path.read_bytes()


@pytest.mark.parametrize("interface", [DiskInterface.NVME, DiskInterface.IDE, DiskInterface.PVSCSI])
def test_the_same_disk_boots_on_other_controllers(
    interface: DiskInterface, disk: Path, tmp_path: Path
) -> None:
    """A restored guest may be given the controller it had before."""
    with Machine(tiny_spec(disk, disk_interface=interface), tmp_path) as machine:
        assert boots(machine)


@pytest.mark.parametrize("interface", list(DiskInterface))
@pytest.mark.parametrize("nic", list(NicModel))
def test_qemu_accepts_every_machine_that_can_be_asked_for(
    interface: DiskInterface, nic: NicModel, tmp_path: Path
) -> None:
    """No combination of controller, NIC and number of disks is refused by QEMU."""
    needs("qemu-system-x86_64", "setpriv")
    disks = tuple(RawFile(path=tmp_path / f"{number}.raw") for number in range(3))
    for disk in disks:
        disk.path.write_bytes(bytes(1 << 20))
    spec = MachineSpec(disks=disks, disk_interface=interface, nic=nic, forwarded_ports=(80, 443))
    with Machine(spec, tmp_path) as machine:
        assert machine.running
        assert machine.forwarded_port(443) != machine.forwarded_port(80)


def test_a_port_the_guest_does_not_serve_fails_its_probe(running_guest: Machine) -> None:
    """The user network accepts on the host side for any declared port; the probe is not fooled."""
    with socket.create_connection(("127.0.0.1", running_guest.forwarded_port(9999))):
        pass
    for _ in range(3):  # a service that closes at once must not be missed now and then
        assert TcpProbe(7777).attempt(running_guest).ok
    assert not TcpProbe(9999).attempt(running_guest).ok
    assert not parse_probe("http:8080/missing").attempt(running_guest).ok
    assert parse_probe("http:8080/").attempt(running_guest).ok


def test_forwarded_ports_listen_on_loopback_only(running_guest: Machine) -> None:
    """Nothing on the network can reach a machine under test."""
    ports = {running_guest.forwarded_port(port) for port in (7777, 8080, 9999)}
    listening = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        address, port = line.split()[1].split(":")
        if int(port, 16) in ports and line.split()[3] == "0A":
            listening.add((address, int(port, 16)))
    assert listening == {("0100007F", port) for port in ports}
    with pytest.raises(SandboxError):
        running_guest.forwarded_port(22)


def test_a_guest_reaches_neither_the_host_nor_a_name_server(running_guest: Machine) -> None:
    """A production VM started for a test must not talk to anybody."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.5)
        port = server.getsockname()[1]
        assert ask(running_guest, "fetch 127.0.0.1 8080", "FETCH") == "FETCH ok"
        assert ask(running_guest, f"fetch 10.0.2.2 {port}", "FETCH") == "FETCH failed"
        assert ask(running_guest, "resolve x.example 10.0.2.3", "RESOLVE") == "RESOLVE failed"
        with pytest.raises(TimeoutError):
            server.accept()


def test_a_guest_that_never_gets_ready_is_killed_at_the_deadline(
    disk: Path, tmp_path: Path
) -> None:
    """The report says which probe failed and still holds a screenshot; no process remains."""
    pids: list[int] = []

    class NeverReady:
        text = "never"
        guest_port = None

        def attempt(self, machine: ProbedMachine) -> Attempt:
            assert isinstance(machine, Machine)
            pids.append(machine.pid)
            return Attempt(False, "not yet")

    report = boot(
        tiny_spec(disk), [NeverReady()], 1.0, CancelToken(), artifact_folder=tmp_path / "evidence"
    )
    assert not report.ok and report.power_off is PowerOff.KILLED
    assert report.probes[0].detail == "not yet" and report.probes[0].seconds is None
    assert report.screenshot_path is not None and report.screenshot_path.exists()
    assert is_gone(pids[0])


def test_a_stuck_probe_ends_with_its_machine(
    disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A guest that answers by drips cannot hold the run past deadline and margin."""
    monkeypatch.setattr(boot_module, "_GUARD_MARGIN_S", 0.5)

    class Stuck:
        text = "stuck"
        guest_port = None

        def attempt(self, machine: ProbedMachine) -> Attempt:
            assert isinstance(machine, Machine)
            return Attempt(False, "ended" if machine.wait(BOOT_S) else "still there")

    report = boot(
        tiny_spec(disk), [Stuck()], 0.5, CancelToken(), artifact_folder=tmp_path / "evidence"
    )
    assert report.probes[0].detail == "ended"
    assert report.screenshot_path is None


def test_a_cancelled_boot_leaves_nothing(disk: Path, tmp_path: Path) -> None:
    """Cancelling kills the machine and says so."""
    cancel = CancelToken()
    pids: list[int] = []

    class CancelsTheRun:
        text = "cancels"
        guest_port = None

        def attempt(self, machine: ProbedMachine) -> Attempt:
            assert isinstance(machine, Machine)
            pids.append(machine.pid)
            cancel.cancel()
            return Attempt(False, "")

    with pytest.raises(CancelledError):
        boot(tiny_spec(disk), [CancelsTheRun()], BOOT_S, cancel, artifact_folder=tmp_path)
    assert is_gone(pids[0])


def test_a_boot_without_probes_is_refused(tmp_path: Path) -> None:
    """Without a probe nothing could ever be said to work."""
    with pytest.raises(UsageError):
        boot(tiny_spec(Path("x")), [], 1.0, CancelToken(), artifact_folder=tmp_path)


def test_a_machine_without_its_disk_fails_with_qemus_words(tmp_path: Path) -> None:
    """The operator reads what QEMU said, not a timeout."""
    needs("qemu-system-x86_64", "setpriv")
    missing = tmp_path / "missing.raw"
    with (
        pytest.raises(SandboxError, match=r"missing\.raw.*No such file"),
        Machine(tiny_spec(missing), tmp_path),
    ):
        pass


def test_qemu_dies_with_a_killed_parent(disk: Path, tmp_path: Path) -> None:
    """kill -9 of the appliance leaves no machine behind."""
    script = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from appliance.sandbox.machine import Machine\n"
        "from appliance.sandbox.spec import MachineSpec, RawFile\n"
        "spec = MachineSpec(disks=(RawFile(path=Path(sys.argv[1])),), memory_mib=256)\n"
        "with Machine(spec, Path(sys.argv[2])) as machine:\n"
        "    print(machine.pid, flush=True)\n"
        "    time.sleep(60)\n"
    )
    command = [sys.executable, "-c", script, str(disk), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert Path(f"/proc/{pid}/comm").read_text().startswith("qemu-system")
        parent.send_signal(signal.SIGKILL)
    assert is_gone(pid)


def test_a_machine_outlives_the_thread_that_started_it(disk: Path, tmp_path: Path) -> None:
    """The death signal follows the machine's own thread, not whichever thread asked for it."""
    machines: list[Machine] = []

    def start() -> None:
        machines.append(Machine(tiny_spec(disk), tmp_path).__enter__())

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    try:
        assert not machines[0].wait(0.5)
        machines[0].screenshot(tmp_path / "alive.png")
    finally:
        machines[0].close()
    assert not machines[0].running


def test_every_acknowledged_number_is_on_the_disk_after_a_kill(disk: Path, tmp_path: Path) -> None:
    """The journal keeps its promise over a power cut, and goes on behind it after a reboot."""
    with Machine(tiny_spec(disk), tmp_path) as machine:
        assert boots(machine)
        machine.send_line("journal start")
        acknowledged = acknowledge(machine, 25, LineCursor())
        machine.kill()
    numbers = read_journal(disk)
    assert acknowledged == 25
    assert len(numbers) >= acknowledged
    with Machine(tiny_spec(disk), tmp_path) as machine:
        assert boots(machine)
        machine.send_line("journal start")
        assert acknowledge(machine, 1, LineCursor()) == len(numbers) + 1
        assert machine.power_off(BOOT_S) is PowerOff.GRACEFUL
    assert len(read_journal(disk)) > len(numbers)


def test_a_guest_survives_its_nbd_server(disk: Path, tmp_path: Path) -> None:
    """Every fsync in the guest is a flush at the server; a server killed with -9 costs no write."""
    needs("nbdkit")
    socket_path, log_path = tmp_path / "nbd.sock", tmp_path / "nbd.log"
    source = NbdExport(socket_path=socket_path, reconnect_delay_s=60)

    def serve() -> subprocess.Popen[bytes]:
        socket_path.unlink(missing_ok=True)
        command = ["nbdkit", "--foreground", "--unix", str(socket_path), "--filter=log", "file"]
        options = [str(disk), f"logfile={log_path}", "logappend=true"]
        server = subprocess.Popen([*command, *options])
        while not socket_path.exists():
            assert server.poll() is None
            time.sleep(0.02)
        return server

    server = serve()
    try:
        with Machine(tiny_spec(source), tmp_path) as machine:
            assert boots(machine)
            machine.send_line("journal start")
            cursor = LineCursor()
            acknowledge(machine, 10, cursor)
            server.kill()
            server.wait()
            server = serve()
            acknowledged = acknowledge(machine, 20, cursor)
    finally:
        server.kill()
        server.wait()
    assert acknowledged >= 30
    assert len(read_journal(disk)) >= acknowledged
    assert len(re.findall(r" Flush id=", log_path.read_text())) >= acknowledged


def test_tcg_executes_guest_code() -> None:
    """The probe that decides about KVM does succeed where an accelerator works."""
    needs("qemu-system-x86_64")
    assert executes_guest_code(Accelerator.TCG, timeout_s=BOOT_S)
