"""The journal of a run that may break: what is read back is what was kept, whole lines only."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from appliance.base.consistency import Consistency
from appliance.base.ids import RunId
from appliance.jobs.broken_run import BrokenRunJournal, journal_path, read_broken_run
from appliance.sources.frozen import DiskIdentity, FrozenDisk, FrozenVm
from tests.support.memory_reader import MemoryReader

RUN = RunId("20260101T000000Z-0123456789ab")


def _journal(path: Path) -> BrokenRunJournal:
    disk = FrozenDisk(
        number=3,
        label="Hard disk 4",
        reader=MemoryReader(bytes(8192)),
        change_id="52 aa/7",
        identity=DiskIdentity(uuid="u", place="scsi0:3", change_id="52 aa/7"),
    )
    vm = FrozenVm(
        name="web",
        created_at=datetime.now(UTC),
        consistency=Consistency.CRASH,
        source="vsphere",
        disks=[disk],
        instance="vc/uuid",
    )
    return BrokenRunJournal(path, RUN, vm)


def _kept(path: Path, count: int) -> None:
    journal = _journal(path)
    for segment in range(count):
        journal.note(3, segment, bytes([segment]) * 32)
    journal.keep(journal.take())


def test_what_was_kept_is_read_back(tmp_path: Path) -> None:
    """State and leaves survive, in several portions."""
    path = journal_path(tmp_path / "journals", b"repo", "../web")
    assert path.parent == tmp_path / "journals"
    journal = _journal(path)
    for segment in (0, 1, 5):
        journal.note(3, segment, bytes([segment]) * 32)
        journal.keep(journal.take())
    found = read_broken_run(path, "web")
    assert found is not None
    assert found.leaves_of(3) == {segment: bytes([segment]) * 32 for segment in (0, 1, 5)}
    assert found.state.run_id == RUN
    known = found.state.disk(3)
    assert known is not None
    assert (known.change_id, known.size_bytes) == ("52 aa/7", 8192)


def test_a_cut_at_any_byte_loses_the_end_at_most(tmp_path: Path) -> None:
    """Whatever a crash left of the file, each leaf that is read is one that was kept."""
    path = tmp_path / "j"
    _kept(path, 4)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        found = read_broken_run(path, "web")
        if found is not None:
            leaves = dict(found.leaves_of(3))
            assert leaves == {segment: bytes([segment]) * 32 for segment in range(len(leaves))}


def test_a_flipped_bit_ends_the_reading(tmp_path: Path) -> None:
    """Nothing behind damage is believed, and nothing damaged."""
    path = tmp_path / "j"
    _kept(path, 4)
    whole = path.read_bytes()
    for at in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[at] ^= 1
        path.write_bytes(damaged)
        found = read_broken_run(path, "web")
        if found is not None:
            assert set(found.leaves_of(3).items()) <= {(s, bytes([s]) * 32) for s in range(4)}


def test_the_journal_of_another_vm_is_none(tmp_path: Path) -> None:
    """The file's name is a hash; what stands inside decides."""
    path = tmp_path / "j"
    _kept(path, 1)
    assert read_broken_run(path, "db") is None
    assert read_broken_run(tmp_path / "absent", "web") is None
