"""A frozen disk over SMB keeps the BlockReader contract: a differencing chain on a real Samba."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from appliance.base.run_context import CancelToken
from appliance.base.units import MIB
from appliance.blocks.device import BlockReader
from appliance.sources.hyperv_smb_reader import NotFrozenError, SmbDiskOpener
from appliance.sources.reopening_reader import ReopeningReader
from hyperv.smb_files import SmbLogin
from tests.contract.block_reader import BlockReaderSuite, MakeReader, sample_content
from tests.support.hyperv_disk_values import disk_file
from tests.support.needs import needs
from tests.support.samba import PASSWORD, USER, Samba, samba
from tests.support.vhdx_chains import write_chain

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Samba]:
    needs("smbd", "smbpasswd")
    folder = tmp_path_factory.mktemp("smb")
    (folder / "share").mkdir()
    with samba(folder / "samba", {"D$": folder / "share"}) as started:
        yield started


def opener(server: Samba, folder: str) -> SmbDiskOpener:
    login = SmbLogin(address="127.0.0.1", port=server.port, user=USER, password=lambda: PASSWORD)
    chain = [disk_file(f"D:\\{folder}\\{name}.vhdx") for name in ("child", "base")]
    return SmbDiskOpener("hv1", lambda: login, chain, None)


_numbers = itertools.count()  # the server is one for all tests of this module


class TestSmbDisk(BlockReaderSuite):
    @pytest.fixture
    def make(self, server: Samba) -> MakeReader:
        def make_reader(content: bytes) -> BlockReader:
            name = f"disk-{next(_numbers)}"
            folder = server.folder.parent / "share" / name
            folder.mkdir()
            write_chain(folder, content)
            return opener(server, name)(None).reader

        return make_reader


def test_a_file_that_is_written_to_while_it_is_read_was_not_frozen(
    server: Samba, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of such a run may become a recovery point."""
    monkeypatch.setattr("appliance.sources.hyperv_smb_reader._LOOK_AFTER_BYTES", 2 * MIB)
    folder = server.folder.parent / "share" / "live"
    folder.mkdir()
    write_chain(folder, sample_content(3 * MIB))
    reader = opener(server, "live")(None).reader
    try:
        reader.read_at(0, 3 * MIB)
        with (folder / "child.vhdx").open("r+b") as file:
            file.seek((64 << 10) + 8)  # the sequence number of the first header
            file.write(b"\x99")
        with pytest.raises(NotFrozenError):
            reader.read_at(0, 3 * MIB)
    finally:
        reader.close()


def _written_to(server: Samba, name: str) -> None:
    """As by a merge: the sequence number of the first header."""
    with (server.folder.parent / "share" / name / "child.vhdx").open("r+b") as file:
        file.seek((64 << 10) + 8)
        file.write(b"\x99")


def test_a_file_that_changed_while_its_connection_was_away_was_not_frozen(server: Samba) -> None:
    """What comes after would be of another moment than what was read before."""
    folder = server.folder.parent / "share" / "merged"
    folder.mkdir()
    write_chain(folder, sample_content(MIB))
    open_disk = opener(server, "merged")
    open_disk(None).reader.close()
    open_disk(None).reader.close()
    _written_to(server, "merged")
    with pytest.raises(NotFrozenError):
        open_disk(None)


def test_a_change_after_the_last_look_is_seen_when_all_is_read(server: Samba) -> None:
    """Also of a few changed blocks, which are fewer than what a look is due after."""
    folder = server.folder.parent / "share" / "small"
    folder.mkdir()
    content = sample_content(MIB)
    write_chain(folder, content)
    reader = ReopeningReader("disk", MIB, opener(server, "small"), CancelToken())
    try:
        reader.begin(None)
        assert reader.report().transport == "smb"
        _written_to(server, "small")
        assert reader.read_at(0, MIB) == content
        with pytest.raises(NotFrozenError):
            reader.report()
    finally:
        reader.close()
