"""Disk files read over SMB 3 from a real Samba, signed and encrypted."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from smbprotocol.open import (
    CreateDisposition,
    CreateOptions,
    FileAttributes,
    FilePipePrinterAccessMask,
    ImpersonationLevel,
    Open,
)
from smbprotocol.tree import TreeConnect

from hyperv.errors import (
    FileError,
    FileUnreachableError,
    GoneError,
    HypervError,
    LoginError,
    SharingError,
)
from hyperv.smb_files import Protection, SmbConnection, SmbLogin
from hyperv.vhdx.source import BatchSource
from hyperv.windows_path import SharedPath, shared_path
from tests.support.needs import needs
from tests.support.samba import PASSWORD, USER, Samba, samba

pytestmark = pytest.mark.integration

MIB = 1 << 20
FILE = shared_path("D:\\VM\\a.vhdx")


@pytest.fixture(scope="module")
def content() -> bytes:
    return random.Random(7).randbytes(20 * MIB + 12345)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> Iterator[Samba]:
    needs("smbd", "smbpasswd")
    folder = tmp_path_factory.mktemp("smb")
    share = folder / "share"
    (share / "VM").mkdir(parents=True)
    (share / "VM" / "a.vhdx").write_bytes(content)
    with samba(folder / "samba", {"D$": share}) as started:
        yield started


def login(
    server: Samba, *, password: str = PASSWORD, protection: Protection = Protection.SIGNED
) -> SmbLogin:
    return SmbLogin(
        address="127.0.0.1",
        port=server.port,
        user=USER,
        password=lambda: password,
        protection=protection,
    )


@pytest.mark.parametrize("protection", list(Protection))
def test_a_file_is_read_as_it_is(server: Samba, content: bytes, protection: Protection) -> None:
    """In any ranges, many at once or one at a time, up to and over its end."""
    connection = SmbConnection(login(server, protection=protection))
    file = connection.open_file(FILE)
    assert connection.is_encrypted is (protection is Protection.ENCRYPTED)
    assert isinstance(file, BatchSource) and file.size_bytes == len(content)
    rng = random.Random(3)
    ranges = [(rng.randrange(len(content)), rng.randrange(3 * MIB)) for _ in range(12)]
    ranges += [(0, len(content)), (len(content) - 5, 100), (len(content) + 9, 5), (17, 0)]
    found = file.read_many(ranges)
    assert [bytes(part) for part in found] == [content[o : o + n] for o, n in ranges]
    assert file.read_at(4096, 512) == content[4096:4608]
    connection.close()
    with pytest.raises(FileError):
        file.read_at(0, 1)


@pytest.mark.parametrize("protection", list(Protection))
def test_a_file_of_a_2012_r2_host_is_read_as_it_is(
    tmp_path: Path, content: bytes, protection: Protection
) -> None:
    """SMB 3.0.2: other signatures, other seals."""
    needs("smbd", "smbpasswd")
    (tmp_path / "share").mkdir()
    (tmp_path / "share" / "a").write_bytes(content)
    with samba(tmp_path / "samba", {"D$": tmp_path / "share"}, dialect="SMB3_02") as old:
        connection = SmbConnection(login(old, protection=protection))
        try:
            file = connection.open_file(SharedPath(share="D$", path="a"))
            assert file.read_at(5, len(content)) == content[5:]
        finally:
            connection.close()


@pytest.mark.parametrize(
    ("where", "kind"),
    [
        (SharedPath(share="D$", path="VM\\none.vhdx"), GoneError),
        (SharedPath(share="D$", path="none\\a.vhdx"), GoneError),
        (SharedPath(share="X$", path="a.vhdx"), GoneError),
        (SharedPath(share="D$", path="VM"), FileError),
    ],
)
def test_what_is_not_there_is_said_so(
    server: Samba, where: SharedPath, kind: type[HypervError]
) -> None:
    """Share, folder and file; a folder is no file."""
    connection = SmbConnection(login(server))
    with pytest.raises(kind):
        connection.open_file(where)
    connection.close()


def test_a_wrong_password_is_a_login_error(server: Samba) -> None:
    """And is not in its text."""
    with pytest.raises(LoginError) as caught:
        SmbConnection(login(server, password="not-the-one"))
    assert "not-the-one" not in str(caught.value)


def test_a_file_that_somebody_writes_to_is_not_frozen(server: Samba) -> None:
    """As the live leaf of a running VM, which its worker process has open alone."""
    connection = SmbConnection(login(server))
    tree = TreeConnect(connection._session, r"\\127.0.0.1\D$")
    tree.connect()
    alone = Open(tree, FILE.path)
    alone.create(
        ImpersonationLevel.Impersonation,
        FilePipePrinterAccessMask.GENERIC_WRITE,
        FileAttributes.FILE_ATTRIBUTE_NORMAL,
        0,
        CreateDisposition.FILE_OPEN,
        CreateOptions.FILE_NON_DIRECTORY_FILE,
    )
    other = SmbConnection(login(server))
    with pytest.raises(SharingError):
        other.open_file(FILE)
    alone.close()
    other.open_file(FILE)
    other.close()
    connection.close()


def test_our_handle_is_gone_when_close_returns(server: Samba) -> None:
    """What a merge waits for: afterwards the file can be opened alone."""
    ours = SmbConnection(login(server))
    ours.open_file(FILE).read_at(0, 10)
    ours.close()
    ours.close()
    connection = SmbConnection(login(server))
    tree = TreeConnect(connection._session, r"\\127.0.0.1\D$")
    tree.connect()
    alone = Open(tree, FILE.path)
    alone.create(
        ImpersonationLevel.Impersonation,
        FilePipePrinterAccessMask.GENERIC_READ,
        FileAttributes.FILE_ATTRIBUTE_NORMAL,
        0,
        CreateDisposition.FILE_OPEN,
        CreateOptions.FILE_NON_DIRECTORY_FILE,
    )
    alone.close()
    connection.close()


def test_a_connection_that_breaks_is_a_retryable_error(server: Samba) -> None:
    """The reader above opens anew and goes on."""
    connection = SmbConnection(login(server))
    file = connection.open_file(FILE)
    connection._connection.transport.close()
    with pytest.raises(FileUnreachableError) as caught:
        file.read_at(0, MIB)
    assert caught.value.retryable
    connection.close()


@pytest.mark.parametrize("protection", list(Protection))
def test_a_file_that_became_shorter_is_an_error(
    tmp_path: Path, content: bytes, protection: Protection
) -> None:
    """It was not frozen; nothing is made up for what is missing."""
    needs("smbd", "smbpasswd")
    (tmp_path / "share").mkdir()
    path = tmp_path / "share" / "a"
    path.write_bytes(content)
    with samba(tmp_path / "samba", {"D$": tmp_path / "share"}) as other:
        connection = SmbConnection(login(other, protection=protection))
        file = connection.open_file(SharedPath(share="D$", path="a"))
        os.truncate(path, 9 * MIB + 17)
        for offset in (8 * MIB, 12 * MIB):  # over the new end, and behind it
            with pytest.raises(FileError) as caught:
                file.read_at(offset, 4 * MIB)
            assert not caught.value.retryable
        assert file.read_at(0, 9 * MIB) == content[: 9 * MIB]
        connection.close()


def test_a_port_without_a_server_is_unreachable(server: Samba) -> None:
    """At once, with address and port in the text."""
    with pytest.raises(FileUnreachableError, match=r"127\.0\.0\.1:1"):
        SmbConnection(SmbLogin(address="127.0.0.1", port=1, user=USER, password=lambda: PASSWORD))


@pytest.mark.parametrize(
    "path",
    [
        "a.vhdx",
        "D:a.vhdx",
        "D:\\..\\a.vhdx",
        "D:\\a\\..\\b.vhdx",
        "D:\\a\\\\b.vhdx",
        "D:\\a.vhdx:stream",
        "D:\\a*.vhdx",
        "\\\\server\\share\\a.vhdx",
        "\\\\?\\Volume{1}\\a.vhdx",
        "D:\\",
        "/etc/passwd",
        "D:\\a\x00",
    ],
)
def test_a_path_that_is_not_plainly_local_is_refused(path: str) -> None:
    """No path of a host leads out of its share."""
    with pytest.raises(FileError):
        shared_path(path)


def test_a_share_of_ours_stands_for_a_drive_without_an_admin_share() -> None:
    """The rest of the path stays."""
    assert shared_path("d:\\VM\\a.vhdx") == SharedPath(share="D$", path="VM\\a.vhdx")
    assert shared_path("d:\\VM\\a.vhdx", {"D": "ours$"}).share == "ours$"
