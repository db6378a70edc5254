"""Devices on a share of our Samba, used by another's SMB 3 client (smbprotocol)."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from appliance.base.errors import UsageError
from appliance.blocks.overlay import Overlay
from appliance.blocks.zero_reader import ZeroReader
from appliance.exports.smb.samba_folder import DomainFileError, SambaFolder, ShareAccountError
from appliance.exports.smb.server import SmbServer
from appliance.exports.smb.share import SmbShare
from lab.hyperv_host.errors import HypervError
from lab.hyperv_host.smb_client import Mapping, SmbClient
from lab.hyperv_host.windows_path import WindowsPath
from tests.support.needs import needs

pytestmark = pytest.mark.integration
SIZE = 8 << 20
FILE = "disk-0.vhdx"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[SmbServer]:
    needs("smbd", "pdbedit", "smbcontrol", "fusermount3")
    made = SmbServer(tmp_path / "smb", tmp_path / "shares", host="127.0.0.1", port=0)
    yield made
    made.stop()
    assert not (tmp_path / "shares").exists()


@contextmanager
def shared(
    server: SmbServer, folder: Path, name: str = "one", clients: tuple[str, ...] = ("127.0.0.1",)
) -> Iterator[Overlay]:
    overlay = Overlay.create(folder / name, ZeroReader(SIZE), {"disk": name})
    try:
        server.publish(SmbShare(name=name, files={FILE: overlay}, clients=clients))
        yield overlay
    finally:
        server.withdraw(name)
        overlay.close()


def mapping(server: SmbServer, name: str = "one", password: str = "") -> Mapping:
    account = server.samba.account()
    return Mapping(
        path=f"\\\\127.0.0.1\\{name}",
        server="127.0.0.1",
        port=server.port,
        user=account.user,
        password=password or account.password.reveal().decode(),
    )


def client(server: SmbServer, *names: str) -> SmbClient:
    made = SmbClient()
    for name in names or ("one",):
        made.map(mapping(server, name))
    return made


def path(name: str = "one", file: str = FILE) -> WindowsPath:
    return WindowsPath.parse(f"\\\\127.0.0.1\\{name}\\{file}")


def test_what_is_written_on_a_share_is_in_the_device(server: SmbServer, tmp_path: Path) -> None:
    """And durable, and seen by who opens the file next."""
    with shared(server, tmp_path) as overlay:
        place = client(server).file(path())
        opened = place.open(writable=True)
        assert opened.size() == SIZE
        opened.pwrite(b"x" * 300_000, 12_345)
        opened.sync()
        assert overlay.read_at(12_345, 300_000) == b"x" * 300_000
        assert opened.pread(4, 12_343) == b"\0\0xx"
        with pytest.raises(OSError, match="SHARING_VIOLATION"):
            place.open(writable=True)
        opened.close()
        again = place.open(writable=False)
        assert again.pread(300_000, 12_345) == b"x" * 300_000
        again.close()


def test_a_share_is_for_its_clients_and_their_password(server: SmbServer, tmp_path: Path) -> None:
    """An address that is not named, a wrong password and another file get nothing."""
    with (
        shared(server, tmp_path),
        shared(server, tmp_path, "two", ("192.0.2.1",)),
    ):
        with pytest.raises(HypervError, match="LOGON_FAILURE"):
            SmbClient().map(mapping(server, password="not this one"))
        with pytest.raises(HypervError, match="ACCESS_DENIED"):
            client(server, "two")
        mapped = client(server)
        assert not mapped.file(path(file="other.vhdx")).exists()
        assert mapped.file(path()).exists()


def test_a_device_may_be_removed_from_the_share_and_nothing_else_made(
    server: SmbServer, tmp_path: Path
) -> None:
    """As Move-VMStorage removes what it has moved; what was written stays with us."""
    with shared(server, tmp_path) as overlay:
        place = client(server).file(path())
        opened = place.open(writable=True)
        opened.pwrite(b"kept", 0)
        opened.close()
        place.unlink()
        assert not place.exists()
        assert overlay.read_at(0, 4) == b"kept"


def test_an_open_file_goes_on_after_smbd_was_killed(server: SmbServer, tmp_path: Path) -> None:
    """It is started again; the client opens its file again and finds what was written."""
    with shared(server, tmp_path):
        opened = client(server).file(path()).open(writable=True)
        opened.pwrite(b"before", 0)
        killed = server.smbd_pid
        os.killpg(killed, signal.SIGKILL)
        assert opened.pread(6, 0) == b"before"
        opened.pwrite(b"after", 100)
        assert opened.pread(5, 100) == b"after"
        assert server.smbd_pid not in (0, killed)
        opened.close()


def test_the_last_share_takes_everything_with_it(server: SmbServer, tmp_path: Path) -> None:
    """smbd, mount, account and state; a share that stays keeps its open files."""
    first = shared(server, tmp_path)
    first.__enter__()
    with shared(server, tmp_path, "two"):
        opened = client(server, "one", "two").file(path("two")).open(writable=True)
        first.__exit__(None, None, None)
        opened.pwrite(b"two", 0)
        opened.close()
        with pytest.raises(HypervError):
            SmbClient().map(mapping(server))
        pid = server.smbd_pid
    assert server.smbd_pid == 0 and not Path(f"/proc/{pid}").exists()
    assert not (tmp_path / "smb").exists()
    with pytest.raises(ShareAccountError):
        server.samba.account()
    names = [thread.name for thread in threading.enumerate()]
    assert "smb-keeper" not in names and "device-files" not in names


def test_a_member_of_a_domain_lets_computer_accounts_in(tmp_path: Path) -> None:
    """With what the administrator wrote, which stays when the last share goes."""
    samba = SambaFolder(tmp_path)
    share = SmbShare(
        name="one",
        files={FILE: ZeroReader(SIZE)},
        clients=("192.0.2.1", "HV1$"),  # type: ignore[dict-item]
    )
    samba.write_config("127.0.0.1", 445, [share], tmp_path / "shares")
    assert "HV1$" not in samba.config_path.read_text()
    assert samba.domain() == ""
    (tmp_path / "domain.conf").write_text("  security = ads\n")
    with pytest.raises(DomainFileError):
        samba.domain()
    (tmp_path / "domain.conf").write_text("  security = ads\n  workgroup = EXAMPLE\n")
    (tmp_path / "private").mkdir()
    samba.write_config("127.0.0.1", 445, [share], tmp_path / "shares")
    text = samba.config_path.read_text()
    assert '"EXAMPLE\\HV1$"' in text and f"include = {tmp_path}/domain.conf" in text
    assert "standalone" not in text
    samba.remove()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["domain.conf", "private"]


@pytest.mark.parametrize(
    ("name", "clients"), [("a/b", ("192.0.2.1",)), ("a", ("x y",)), ("a", ("HV1$",))]
)
def test_what_would_be_another_setting_is_refused(name: str, clients: tuple[str, ...]) -> None:
    """Names and clients go into Samba's configuration, so they are of a small alphabet."""
    with pytest.raises(UsageError):
        SmbShare(name=name, files={FILE: ZeroReader(SIZE)}, clients=clients)  # type: ignore[dict-item]
