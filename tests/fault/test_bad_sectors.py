"""A sector that the disk cannot read: found, named, gone around, and healed by the next backup."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from appliance.base.errors import StorageError
from appliance.repository.errors import CorruptError, UnreadableError
from appliance.repository.format import CONFIG_NAME, INDEX_SEGMENTS, POINTS, QUARANTINE, PackKind
from appliance.repository.gc import GcOptions, collect_garbage
from appliance.repository.pack import SealedPack, iter_entries, read_footer
from appliance.repository.repository import Repository, RepositoryOptions
from appliance.repository.verify import DamageKind, check
from tests.support.check_repository import check_repository, restored
from tests.support.faults import refuse_reads
from tests.support.small_backups import SMALL_PACKS, back_up_bytes, overwrite, random_disk

WEB = bytes(random_disk(1, 200))
OTHER = bytes(random_disk(2, 100))
ONE_PACK = RepositoryOptions(pack_target_bytes=16 << 20, workers=1)


def filled(path: Path, options: RepositoryOptions = SMALL_PACKS) -> Repository:
    """Return an open repository with a point of `web` and one of `other`, which share nothing."""
    Repository.create(path)
    repository = Repository.open(path, options=options)
    back_up_bytes(repository, WEB)
    back_up_bytes(repository, OTHER, "other")
    return repository


def pack_of_web(repository: Repository, kind: PackKind) -> SealedPack:
    """Return the pack of `kind` that holds the root, or the first chunk, of `web`."""
    point = repository.points.list("web")[0]
    for pack in repository.index.packs():
        if pack.kind is kind:
            sealed = read_footer(repository.store, pack.pack_id, repository.id)
            if kind is PackKind.DATA or point.disks[0].root in sealed.entries:
                return sealed
    raise AssertionError("no such pack")


@pytest.mark.parametrize(
    "number", [errno.EIO, errno.ENODATA, errno.EBADMSG, errno.EUCLEAN, errno.EILSEQ]
)
@pytest.mark.parametrize("kind", [PackKind.DATA, PackKind.TREE], ids=["chunk", "node"])
def test_a_check_goes_on_after_a_bad_sector_and_the_next_backup_heals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: PackKind, number: int
) -> None:
    """One record is quarantined, its point named; a backup on the same disk stores it anew."""
    with filled(tmp_path / "r") as repository:
        web, other = repository.points.list()
        sealed = pack_of_web(repository, kind)
        digest, offset, stored, _, _ = list(iter_entries(sealed.entries))[-1]
        at = offset + stored // 2
        refuse_reads(monkeypatch, tmp_path / "r" / sealed.name, at, at + 1, number)
        report = check(repository, read_data=True)
        assert [damage.kind for damage in report.damages] == [DamageKind.RECORD]
        assert digest.hex() in report.damages[0].name
        assert sealed.name in report.damages[0].reason
        named = [point for point in (web, other) if point.point_id in report.affected_points]
        assert len(named) == 1
        disks = {web.point_id: WEB, other.point_id: OTHER}
        for point_id, disk in disks.items():
            if point_id in report.affected_points:
                with pytest.raises(CorruptError, match="quarantine"):
                    restored(repository, point_id)
            else:
                assert restored(repository, point_id) == disk
        back_up_bytes(repository, disks[named[0].point_id], named[0].vm, changed=[])
        for point_id, disk in disks.items():
            assert restored(repository, point_id) == disk  # also past the gap that is unreadable
        healed = check_repository(repository)
        assert healed.dead_damaged_records == 1


def test_a_collection_rescues_what_lies_beside_a_bad_sector(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After healing, the pack with the sector is rewritten around it and removed."""
    with filled(tmp_path / "r", ONE_PACK) as repository:
        sealed = pack_of_web(repository, PackKind.DATA)
        _, offset, _, _, _ = list(iter_entries(sealed.entries))[2]
        refuse_reads(monkeypatch, tmp_path / "r" / sealed.name, offset, offset + 1)
        assert len(check(repository, read_data=True).damages) == 1
        outcome = collect_garbage(repository)  # a point needs the record: the pack is left alone
        assert (tmp_path / "r" / sealed.name).exists()
        assert outcome.reasons == ()
        back_up_bytes(repository, WEB)
        outcome = collect_garbage(repository)
        assert outcome.reasons == ()
        assert not (tmp_path / "r" / sealed.name).exists()
        assert check_repository(repository).dead_damaged_records == 0
        assert list(repository.store.list(QUARANTINE)) == []
        for point in repository.points.list():
            assert restored(repository, point.point_id) == (OTHER if point.vm == "other" else WEB)


def test_a_collection_leaves_a_pack_that_it_cannot_read_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before any check: the collection ends well, and names the pack and the next step."""
    with filled(tmp_path / "r", ONE_PACK) as repository:
        old = repository.points.list("web")[0]
        disk = bytearray(WEB)
        overwrite(disk, 3)
        back_up_bytes(repository, disk)
        repository.points.forget(old.point_id)
        sealed = pack_of_web(repository, PackKind.DATA)
        refuse_reads(monkeypatch, tmp_path / "r" / sealed.name, 0, sealed.size_bytes)
        outcome = collect_garbage(repository, GcOptions(rewrite_below=1.0))
        assert {reason.code for reason in outcome.reasons} == {"gc.damaged-pack"}
        assert sealed.name in outcome.reasons[0].text
        assert (tmp_path / "r" / sealed.name).exists()


def test_a_pack_frame_on_a_bad_sector_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its records are moved; no point is affected."""
    with filled(tmp_path / "r") as repository:
        sealed = pack_of_web(repository, PackKind.DATA)
        end = sealed.size_bytes
        refuse_reads(monkeypatch, tmp_path / "r" / sealed.name, end - 1, end)
        report = check(repository, read_data=True)
        found = [(damage.kind, damage.name, damage.repaired) for damage in report.damages]
        assert found == [(DamageKind.PACK, sealed.pack_id.hex(), True)]
        assert not report.affected
        check_repository(repository)


@pytest.mark.parametrize(
    ("folder", "kind"),
    [(POINTS, DamageKind.RECOVERY_POINT), (INDEX_SEGMENTS, DamageKind.INDEX_SEGMENT)],
)
def test_a_bad_sector_in_a_small_blob_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, kind: DamageKind
) -> None:
    """A manifest or an index segment that cannot be read ends no check."""
    with filled(tmp_path / "r") as repository:
        name = next(iter(repository.store.list(folder))).name
        refuse_reads(monkeypatch, tmp_path / "r" / name, 0, 1)
        report = check(repository, read_data=True)
        assert [(damage.kind, damage.name) for damage in report.damages] == [(kind, name)]


@pytest.mark.parametrize(
    "number",
    [errno.ESTALE, errno.ENOTCONN, errno.EACCES, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.ENXIO],
)
def test_nothing_is_quarantined_when_the_storage_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """The check ends with the storage's own error; afterwards everything is as it was."""
    with filled(tmp_path / "r") as repository:
        sealed = pack_of_web(repository, PackKind.DATA)
        with monkeypatch.context() as patch:
            refuse_reads(patch, tmp_path / "r" / sealed.name, 0, sealed.size_bytes, number)
            with pytest.raises(StorageError) as caught:
                check(repository, read_data=True)
            assert not isinstance(caught.value, UnreadableError)
        assert list(repository.store.list(QUARANTINE)) == []
        check_repository(repository)


def test_nothing_is_quarantined_when_the_whole_disk_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that was pulled refuses writes too; a note that is not durable takes nothing away."""

    def fail(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with filled(tmp_path / "r") as repository:
        sealed = pack_of_web(repository, PackKind.DATA)
        with monkeypatch.context() as patch:
            refuse_reads(patch, tmp_path / "r" / sealed.name, 0, sealed.size_bytes)
            patch.setattr(os, "fsync", fail)
            with pytest.raises(StorageError):
                check(repository, read_data=True)
        assert list(repository.store.list(QUARANTINE)) == []
        check_repository(repository)


@pytest.mark.parametrize("read_data", [True, False])
def test_nothing_is_quarantined_when_packs_fail_because_the_folder_went(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read_data: bool
) -> None:
    """Reads that fail beside a configuration that is gone mean a mount that is gone."""
    with filled(tmp_path / "r") as repository:
        sealed = pack_of_web(repository, PackKind.TREE)
        config = tmp_path / "r" / CONFIG_NAME
        with monkeypatch.context() as patch:
            end = sealed.size_bytes
            refuse_reads(patch, tmp_path / "r" / sealed.name, 0, end)
            config.rename(tmp_path / "elsewhere")
            with pytest.raises(StorageError, match="away"):
                check(repository, read_data=read_data)
        (tmp_path / "elsewhere").rename(config)
        assert list(repository.store.list(QUARANTINE)) == []
        check_repository(repository)
