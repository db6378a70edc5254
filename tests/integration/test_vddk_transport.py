"""The VDDK transport with nbdkit itself, and its sh plugin in the place of VMware's library."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from appliance.sources.errors import NbdError
from appliance.sources.nbd_client import NbdDevice
from tests.contract.block_reader import sample_content
from tests.support.fake_vddk import FakeVddk
from tests.support.inventories import a_disk, a_vm
from tests.support.needs import needs
from tests.support.scripted_vcenter import ScriptedVcenter
from vmware.errors import InvalidRequestError, TransportError, UnsupportedError
from vmware.session import Endpoint
from vmware.transports.contract import DiskRequest
from vmware.transports.nbdkit_process import NbdkitProcess
from vmware.transports.vddk import NbdEndpoint, Vddk, VddkLibrary, check_library

pytestmark = pytest.mark.integration

PASSWORD = "geheim, mit Leerzeichen"
CONTENT = sample_content(3 * 1024 * 1024 + 512)
THUMBPRINT = "aa:bb:cc"


@pytest.fixture(autouse=True)
def _nbdkit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    needs("nbdkit")
    with tempfile.TemporaryDirectory(prefix="vddk-") as short:  # a socket's path is short
        (tmp_path / "tmp").symlink_to(short)
        monkeypatch.setattr(tempfile, "tempdir", short)
        monkeypatch.setenv("LD_LIBRARY_PATH", "/nowhere")
        yield
        monkeypatch.undo()


@pytest.fixture
def fake(tmp_path: Path) -> FakeVddk:
    return FakeVddk(tmp_path, CONTENT, password=PASSWORD)


def request_for(**disk: Any) -> DiskRequest:
    session: Any = ScriptedVcenter().session()
    session.endpoint = Endpoint(
        address="vc.example", port=8443, user="backup@vsphere.local", fingerprint_sha256=None
    )
    return DiskRequest(session=session, vm=a_vm(), snapshot_moref="snapshot-7", disk=a_disk(**disk))


def transport(fake: FakeVddk, password: str = PASSWORD) -> Vddk:
    return Vddk(fake.library, lambda: password, thumbprint=lambda _: THUMBPRINT)


@pytest.fixture
def endpoint(fake: FakeVddk) -> Iterator[NbdEndpoint]:
    endpoint = transport(fake).start(request_for(file_name="[ds one] web/web.vmdk"))
    yield endpoint
    endpoint.close()


def device(endpoint: NbdEndpoint, connections: int = 2) -> NbdDevice:
    sockets = []
    for _ in range(connections):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(endpoint.socket_path))
        sockets.append(sock)
    return NbdDevice(sockets)


def test_the_disk_is_read_through_the_socket(endpoint: NbdEndpoint) -> None:
    """Over several connections, at any offset of a sector."""
    disk = device(endpoint)
    assert disk.size_bytes == len(CONTENT)
    for offset, length in [(0, 65536), (512, 1024), (len(CONTENT) - 512, 512), (0, len(CONTENT))]:
        assert disk.read_at(offset, length) == CONTENT[offset : offset + length]
    disk.close()


def test_the_plugin_is_told_where_the_frozen_disk_is(endpoint: NbdEndpoint, fake: FakeVddk) -> None:
    """VM and snapshot by their ids, the frozen file's name as it is, the SHA-1 thumbprint."""
    told = fake.parameters
    assert told.pop("password").startswith("+/proc/self/fd/")
    assert told == {
        "libdir": str(fake.library.folder),
        "server": "vc.example",
        "port": "8443",
        "user": "backup@vsphere.local",
        "thumbprint": THUMBPRINT,
        "vm": "moref=vm-1",
        "snapshot": "snapshot-7",
        "transports": "nbdssl:nbd",
        "file": "[ds one] web/web.vmdk",
    }


def test_the_password_is_in_no_argument_and_no_file(endpoint: NbdEndpoint, tmp_path: Path) -> None:
    """Other users of the machine see arguments; files outlive a crash."""
    (process,) = _children()
    assert PASSWORD not in Path(f"/proc/{process}/cmdline").read_text()
    assert b"geheim" not in Path(f"/proc/{process}/environ").read_bytes()
    (folder,) = (tmp_path / "tmp").iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert sorted(path.name for path in folder.iterdir()) == ["pid", "socket"]


def test_closing_leaves_nothing(fake: FakeVddk, tmp_path: Path) -> None:
    """No process, no folder; twice is harmless."""
    endpoint = transport(fake).start(request_for())
    endpoint.close()
    endpoint.close()
    assert _children() == []
    assert list((tmp_path / "tmp").iterdir()) == []
    assert endpoint.last_words() == ""


def test_a_wrong_password_is_told_without_it(fake: FakeVddk) -> None:
    """VDDK logs in when the first client comes; the message must not quote the secret."""
    endpoint = transport(fake, "falsches wort").start(request_for())
    try:
        with pytest.raises(NbdError):
            device(endpoint)
        assert "cannot log in with ***" in endpoint.last_words()
    finally:
        endpoint.close()


def test_a_program_that_gives_up_is_an_error_with_its_words(fake: FakeVddk, tmp_path: Path) -> None:
    """And leaves nothing."""
    broken = replace(fake.library, program=str(tmp_path / "broken"))
    Path(broken.program).write_text("#!/bin/sh\necho it does not load >&2\nexit 1\n")
    Path(broken.program).chmod(0o755)
    with pytest.raises(TransportError, match="it does not load"):
        Vddk(broken, lambda: "x", thumbprint=lambda _: "aa").start(request_for())
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_program_that_never_listens_is_ended(tmp_path: Path) -> None:
    """After a while."""
    sleeper = tmp_path / "sleeper"
    sleeper.write_text("#!/bin/sh\nexec sleep 600\n")
    sleeper.chmod(0o755)
    with pytest.raises(TransportError, match="not ready"):
        NbdkitProcess(str(sleeper), lambda _: [], secret="x", ready_within_s=0.2)
    assert _children() == []


def test_it_outlives_the_thread_that_started_it(fake: FakeVddk) -> None:
    """The kernel's death signal goes by thread: a worker that ends must not end the disk."""
    started: list[NbdEndpoint] = []
    worker = threading.Thread(target=lambda: started.append(transport(fake).start(request_for())))
    worker.start()
    worker.join()
    disk = device(started[0])
    assert disk.read_at(0, 512) == CONTENT[:512]
    disk.close()
    started[0].close()


def test_it_dies_with_us(fake: FakeVddk, tmp_path: Path) -> None:
    """kill -9 of the backup leaves no nbdkit that holds the snapshot open."""
    script = f"""
import sys, signal
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from vmware.transports.nbdkit_process import NbdkitProcess
child = NbdkitProcess("nbdkit", lambda _: ["null"], secret="x")
print(child._process.pid, flush=True)
signal.pause()
"""
    environment = {**os.environ, "TMPDIR": str(tmp_path / "tmp")}
    parent = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment
    )
    assert parent.stdout is not None
    descriptor = os.pidfd_open(int(parent.stdout.readline()))
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    ended, _, _ = select.select([descriptor], [], [], 60)
    os.close(descriptor)
    parent.stdout.close()
    assert ended


class TestRefusal:
    def test_a_configured_library_is_not_refused(self, fake: FakeVddk) -> None:
        """Nothing is started to find out."""
        assert transport(fake).refusal(request_for()) is None

    def test_each_missing_part_has_its_code(self, fake: FakeVddk, tmp_path: Path) -> None:
        """So that the result says what to install."""

        def code(library: VddkLibrary | None) -> str:
            refusal = Vddk(library, lambda: "x").refusal(request_for())
            assert refusal is not None
            return refusal.code

        assert code(None) == "transport.vddk-not-configured"
        assert code(replace(fake.library, program="no-such-program")) == "transport.vddk-no-nbdkit"
        assert code(replace(fake.library, folder=tmp_path)) == "transport.vddk-no-library"

    @pytest.mark.parametrize("password", ["", "two\nlines"])
    def test_a_password_that_cannot_be_handed_over_is_refused(
        self, fake: FakeVddk, password: str
    ) -> None:
        """nbdkit would cut it at the line's end."""
        with pytest.raises(InvalidRequestError, match="password"):
            transport(fake, password).start(request_for())

    def test_a_file_name_with_control_characters_is_refused(self, fake: FakeVddk) -> None:
        """What comes from a server is not passed on unseen."""
        with pytest.raises(InvalidRequestError, match="file"):
            transport(fake).start(request_for(file_name="[ds] a\x00b.vmdk"))


class TestHealthCheck:
    def test_a_library_that_loads_says_its_version(self, fake: FakeVddk) -> None:
        """Before the first backup needs it."""
        assert check_library(fake.library) == "8"

    def test_one_that_does_not_says_why(self, fake: FakeVddk, tmp_path: Path) -> None:
        """In nbdkit's words."""
        with pytest.raises(UnsupportedError, match="no library"):
            check_library(replace(fake.library, folder=tmp_path))
        with pytest.raises(UnsupportedError):
            check_library(replace(fake.library, program="no-such-program"))


def _children() -> list[int]:
    return [
        int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    ] + [
        int(pid)
        for task in Path("/proc/self/task").iterdir()
        if task.name != str(os.getpid())
        for pid in (task / "children").read_text().split()
    ]
