"""Disk files written over SMB 3 to a real Samba, signed and encrypted."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from hyperv.errors import FileError, FileUnreachableError, GoneError, SharingError
from hyperv.smb_files import Protection, SmbConnection, SmbLogin
from hyperv.smb_writing import SmbWritableFile, open_for_writing
from hyperv.windows_path import SharedPath
from tests.support.forwarder import Forwarder
from tests.support.needs import needs
from tests.support.samba import PASSWORD, USER, Samba, samba

pytestmark = pytest.mark.integration

MIB = 1 << 20
FILE = SharedPath(share="D$", path="new.vhdx")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Samba]:
    needs("smbd", "smbpasswd")
    folder = tmp_path_factory.mktemp("smb")
    (folder / "share").mkdir()
    with samba(folder / "samba", {"D$": folder / "share"}) as started:
        yield started


@pytest.fixture
def place(server: Samba) -> Path:
    path = server.folder.parent / "share" / "new.vhdx"
    path.write_bytes(b"")
    return path


def connected(port: int, protection: Protection = Protection.SIGNED) -> SmbConnection:
    return SmbConnection(
        SmbLogin(
            address="127.0.0.1",
            port=port,
            user=USER,
            password=lambda: PASSWORD,
            protection=protection,
        )
    )


@pytest.fixture
def connection(server: Samba) -> Iterator[SmbConnection]:
    made = connected(server.port)
    yield made
    made.close()


@pytest.mark.parametrize("protection", list(Protection))
def test_what_is_written_is_in_the_file(server: Samba, place: Path, protection: Protection) -> None:
    """In any order and size, read back before it is flushed; gaps are zeros."""
    connection = connected(server.port, protection)
    file = open_for_writing(connection, FILE)
    noise, expected = random.Random(4), bytearray(24 * MIB)
    end = 0
    for _ in range(40):
        offset = noise.randrange(20 * MIB)
        data = noise.randbytes(noise.choice((1, 512, 70_000, MIB, 3 * MIB + 1)))
        file.write_at(offset, memoryview(data))
        expected[offset : offset + len(data)] = data
        end = max(end, offset + len(data))
    for offset in range(5 * MIB, 6 * MIB, 4096):  # as chunks of a disk come
        file.write_at(offset, b"\x5a" * 4096)
    expected[5 * MIB : 6 * MIB] = b"\x5a" * MIB
    assert file.read_at(0, 30 * MIB) == expected[:end]
    file.set_size(24 * MIB)
    file.flush()
    assert place.read_bytes() == expected
    file.close()
    file.close()
    connection.close()


def test_nobody_else_has_the_file_meanwhile(
    server: Samba, place: Path, connection: SmbConnection
) -> None:
    """Neither to read nor to write, in both directions; closed, it is free."""
    file = open_for_writing(connection, FILE)
    other = connected(server.port)
    with pytest.raises(SharingError):
        open_for_writing(other, FILE)
    with pytest.raises(SharingError):
        other.open_file(FILE)
    file.close()
    reading = other.open_file(FILE)
    with pytest.raises(SharingError):
        open_for_writing(connection, FILE)
    reading.close()
    open_for_writing(connection, FILE).close()
    other.close()


def test_a_file_that_is_not_there_is_not_made(connection: SmbConnection, place: Path) -> None:
    """Only the host makes files, as it writes down whose they are."""
    with pytest.raises(GoneError):
        open_for_writing(connection, SharedPath(share="D$", path="none.vhdx"))
    assert not place.with_name("none.vhdx").exists()


def test_a_connection_that_breaks_is_said_by_the_flush_at_the_latest(
    server: Samba, place: Path
) -> None:
    """What was written behind is not taken for written."""

    def write(file: SmbWritableFile) -> None:
        for number in range(12):
            file.write_at(number * MIB, bytes(MIB))
        file.flush()

    with Forwarder(("127.0.0.1", server.port)) as between:
        connection = connected(between.port)
        file = open_for_writing(connection, FILE)
        write(file)
    with pytest.raises(FileUnreachableError):
        write(file)
    file.close()
    connection.close()
    with pytest.raises(FileError, match="closed"):
        write(file)
