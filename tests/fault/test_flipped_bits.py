"""A flipped bit in any blob: found, named, kept from spreading, and healed by the next backup."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.base.errors import ApplianceError
from appliance.base.secret import Secret
from appliance.repository.errors import CorruptError
from appliance.repository.format import (
    CONFIG_NAME,
    FOOTER_TRAILER,
    INDEX_SEGMENTS,
    KEY_SLOTS,
    PACK_HEADER,
    PACKS,
    POINTS,
    QUARANTINE,
    RECORD_HEADER,
    PackKind,
)
from appliance.repository.gc import collect_garbage
from appliance.repository.image_tree import TreeReader
from appliance.repository.index import IndexDamagedError
from appliance.repository.mark import GcRefusedError
from appliance.repository.pack import iter_entries, read_footer
from appliance.repository.rebuild import rebuild_index
from appliance.repository.repository import Repository
from appliance.repository.setup import RepositoryConfig
from appliance.repository.verify import DamageKind, check
from tests.support.check_repository import check_repository, restored
from tests.support.small_backups import SMALL_PACKS, back_up_bytes, overwrite, random_disk

PASSPHRASE = Secret(b"correct horse battery staple")
WEB = bytes(random_disk(1, 400))
OTHER = bytes(random_disk(2, 200))
SEEDS = [11, 12, 13]


@pytest.fixture(scope="module", params=[None, PASSPHRASE], ids=["clear", "encrypted"])
def original(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Secret | None]:
    """Two points of `web`, the second with changes, and one of `other`, which shares nothing."""
    path = tmp_path_factory.mktemp("original") / "r"
    Repository.create(path, passphrase=request.param)
    with open_at(path, request.param) as repository:
        back_up_bytes(repository, WEB)
        back_up_bytes(repository, OTHER, "other")
        back_up_bytes(repository, changed_web())
    return path, request.param


class Copy:
    """A copy of the original that may be damaged."""

    def __init__(self, path: Path, passphrase: Secret | None) -> None:
        self.path = path
        self.passphrase = passphrase

    def open(self) -> Repository:
        return open_at(self.path, self.passphrase)


@pytest.fixture
def copy(original: tuple[Path, Secret | None], tmp_path: Path) -> Copy:
    path, passphrase = original
    shutil.copytree(path, tmp_path / "r")
    return Copy(tmp_path / "r", passphrase)


def open_at(path: Path, passphrase: Secret | None) -> Repository:
    return Repository.open(path, passphrase=passphrase, options=SMALL_PACKS)


def changed_web() -> bytes:
    disk = bytearray(WEB)
    overwrite(disk, 3)
    return bytes(disk)


def flip(path: Path, source: random.Random, first: int = 0, end: int | None = None) -> int:
    """Flip one bit of byte [first, end) of the file; return the byte's offset."""
    data = bytearray(path.read_bytes())
    offset = source.randrange(first, len(data) if end is None else end)
    data[offset] ^= 1 << source.randrange(8)
    path.chmod(0o600)
    path.write_bytes(data)
    return offset


def packs_of(repository: Repository, kind: PackKind) -> list[bytes]:
    return sorted(p.pack_id for p in repository.index.packs() if p.kind is kind)


def in_record(place: str) -> Callable[[random.Random, int, int], tuple[int, int]]:
    def choose(source: random.Random, offset: int, stored: int) -> tuple[int, int]:
        if place == "header":
            return offset, offset + RECORD_HEADER.size
        return offset + RECORD_HEADER.size, offset + stored

    return choose


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("place", ["header", "payload"])
@pytest.mark.parametrize("kind", [PackKind.DATA, PackKind.TREE], ids=["chunk", "node"])
def test_a_damaged_record_is_found_named_and_healed(
    copy: Copy, kind: PackKind, place: str, seed: int
) -> None:
    """Its points are named with the bytes; others are well; the next backup stores it anew."""
    source = random.Random(seed)
    with copy.open() as repository:
        pack_id = source.choice(packs_of(repository, kind))
        entries = list(iter_entries(read_footer(repository.store, pack_id, repository.id).entries))
        digest, offset, stored, _, _ = source.choice(entries)
        name = f"{PACKS}/{pack_id.hex()[:2]}/{pack_id.hex()}.pack"
    flip(copy.path / name, source, *in_record(place)(source, offset, stored))
    with copy.open() as repository:
        points = repository.points.list()
        disks = dict(zip([p.point_id for p in points], [WEB, OTHER, changed_web()], strict=True))
        report = check(repository, read_data=True)
        assert [damage.kind for damage in report.damages] == [DamageKind.RECORD]
        assert digest.hex() in report.damages[0].name
        assert report.affected_points
        for point_id, disk in disks.items():
            if point_id in report.affected_points:
                with pytest.raises(CorruptError, match="quarantine"):
                    restored(repository, point_id)
                assert repository.is_affected(repository.points.get(point_id))
            else:
                assert restored(repository, point_id) == disk
        assert_extents_cover_the_damage(repository, report.affected, disks)
        again = check(repository, read_data=True)
        assert (again.damages, again.affected) == ((), report.affected)
        heal(repository, disks)
        for point_id, disk in disks.items():
            assert restored(repository, point_id) == disk
        assert check_repository(repository).dead_damaged_records == 1
        collect_garbage(repository)
        assert check_repository(repository).dead_damaged_records == 0
        assert list(repository.store.list(QUARANTINE)) == []
        for point_id, disk in disks.items():
            assert restored(repository, point_id) == disk


def assert_extents_cover_the_damage(
    repository: Repository, affected: tuple, disks: dict[str, bytes]
) -> None:
    """Outside of the extents that are named, every byte can be read."""
    for disk in affected:
        reader = repository.open_image(disk.point_id, disk.disk)
        end = 0
        for offset, length in [*disk.extents, (len(disks[disk.point_id]), 0)]:
            expected = disks[disk.point_id][end:offset]
            assert reader.read_at(end, offset - end) == expected
            end = offset + length
        reader.close()


def heal(repository: Repository, disks: dict[str, bytes]) -> None:
    """The next backups: what both `web` points need stands in one of the two disks."""
    for vm, disk in (("web", changed_web()), ("other", OTHER)):
        back_up_bytes(repository, disk, vm)
    if check(repository).affected:  # only the first point of `web` has it
        back_up_bytes(repository, WEB, "web", full=True)
        back_up_bytes(repository, changed_web(), "web")


def test_the_next_backup_reads_all_without_being_told(copy: Copy) -> None:
    """An affected parent is not built upon, although the source offers a list of changes."""
    source = random.Random(5)
    with copy.open() as repository:
        parent = repository.points.latest("other")
        assert parent is not None
        place = repository.index.find(parent.disks[0].root)
        assert place is not None
        name = f"{PACKS}/{place.pack_id.hex()[:2]}/{place.pack_id.hex()}.pack"
    flip(copy.path / name, source, place.offset, place.offset + place.stored_bytes)
    with copy.open() as repository:
        check(repository, read_data=True)
        back_up_bytes(repository, OTHER, "other", changed=[])
        assert restored(repository, parent.point_id) == OTHER
        check_repository(repository)


@pytest.mark.parametrize("how", ["lost", "empty", "cut"])
@pytest.mark.parametrize("kind", [PackKind.DATA, PackKind.TREE], ids=["chunks", "nodes"])
def test_a_lost_or_cut_pack_is_found_named_and_healed(copy: Copy, kind: PackKind, how: str) -> None:
    """What was in it counts as damaged; the next backups store it anew, and checks are clean."""
    with copy.open() as repository:
        pack_id = packs_of(repository, kind)[0]
        sealed = read_footer(repository.store, pack_id, repository.id)
    path = copy.path / sealed.name
    path.chmod(0o600)
    if how == "lost":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if how == "cut" else b"")
    with copy.open() as repository:
        points = repository.points.list()
        disks = dict(zip([p.point_id for p in points], [WEB, OTHER, changed_web()], strict=True))
        report = check(repository, read_data=True)
        assert DamageKind.PACK in {damage.kind for damage in report.damages}
        assert report.affected_points
        for point_id in disks.keys() - report.affected_points:
            assert restored(repository, point_id) == disks[point_id]
        for vm, disk in (("web", changed_web()), ("other", OTHER), ("web", WEB)):
            back_up_bytes(repository, disk, vm, full=True)
        for point_id, disk in disks.items():
            assert restored(repository, point_id) == disk
        check(repository, read_data=True)  # repairs what was kept for its damaged records
        check_repository(repository)
        collect_garbage(repository)
        check_repository(repository)
        for point_id, disk in disks.items():
            assert restored(repository, point_id) == disk


def test_entries_that_the_index_lost_are_missing_until_a_backup_brings_them(copy: Copy) -> None:
    """Nothing says where they are: the points are named, and their next backup heals them."""
    with copy.open() as repository:
        points = repository.points.list("other")
        rows = [row for row, _ in repository.index.entries()]
        leaves = TreeReader(points[0].disks[0].root, repository.chunks.load)
        digest = leaves.leaf(0).entries[0].digest
        assert digest in rows
        repository.index.announce([digest])
        repository.index.end_announcement()
        report = check(repository)
        assert [(d.kind, d.name) for d in report.damages] == [(DamageKind.MISSING, digest.hex())]
        assert report.affected_points == {points[0].point_id}
        back_up_bytes(repository, OTHER, "other", changed=[])
        check_repository(repository)
        assert restored(repository, points[0].point_id) == OTHER
        collect_garbage(repository)
        assert list(repository.store.list(QUARANTINE)) == []


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("place", ["header", "footer"])
def test_a_damaged_pack_frame_is_found_and_repaired(copy: Copy, place: str, seed: int) -> None:
    """Header and footer are made again from the records; no point is affected."""
    source = random.Random(seed)
    with copy.open() as repository:
        pack_id = source.choice([pack.pack_id for pack in repository.index.packs()])
        sealed = read_footer(repository.store, pack_id, repository.id)
    path = copy.path / sealed.name
    footer = sealed.size_bytes - FOOTER_TRAILER.size - len(sealed.entries)
    flip(path, source, *((0, PACK_HEADER.size) if place == "header" else (footer, None)))
    with copy.open() as repository:
        report = check(repository, read_data=True)
        found = [(damage.kind, damage.name, damage.repaired) for damage in report.damages]
        assert found == [(DamageKind.PACK, pack_id.hex(), True)]
        assert not report.affected
        assert_all_restore(repository)
        check_repository(repository)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("index_lost", [False, True])
def test_a_damaged_index_segment_is_found_and_repaired(
    copy: Copy, seed: int, index_lost: bool
) -> None:
    """Even when the local index is lost with it, the packs say what was in it."""
    source = random.Random(seed)
    segment = source.choice(sorted((copy.path / INDEX_SEGMENTS).iterdir()))
    flip(segment, source)
    if index_lost:
        shutil.rmtree(copy.path / "lmdb")
    with copy.open() as repository:
        report = check(repository, read_data=True)
        name = f"{INDEX_SEGMENTS}/{segment.name}"
        found = [(damage.kind, damage.name, damage.repaired) for damage in report.damages]
        assert found == [(DamageKind.INDEX_SEGMENT, name, True)]
        assert_all_restore(repository)
        check_repository(repository)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_damaged_manifest_is_named_and_stops_garbage_collection(copy: Copy, seed: int) -> None:
    """The other points are well, backups go on, and nothing is removed until it is forgotten."""
    source = random.Random(seed)
    victim = source.choice(sorted((copy.path / POINTS).iterdir()))
    flip(victim, source)
    with copy.open() as repository:
        report = check(repository, read_data=True)
        found = [(damage.kind, damage.name) for damage in report.damages]
        assert found == [(DamageKind.RECOVERY_POINT, f"{POINTS}/{victim.name}")]
        with pytest.raises(GcRefusedError, match=victim.stem):
            collect_garbage(repository)
        for manifest in repository.points.list():
            assert restored(repository, manifest.point_id) in (WEB, OTHER, changed_web())
        manifest = back_up_bytes(repository, changed_web())
        assert restored(repository, manifest.point_id) == changed_web()
        damaged = next(p for p in repository.points.ids() if p == victim.stem)
        repository.points.forget(damaged)
        check_repository(repository)
        collect_garbage(repository)
        check_repository(repository)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("folder", [CONFIG_NAME, KEY_SLOTS])
def test_a_damaged_configuration_or_key_slot_is_found_when_opening(
    copy: Copy, folder: str, seed: int
) -> None:
    """Nothing else is touched; with the blob put back everything is as it was."""
    source = random.Random(seed)
    path = copy.path / folder
    victim = path if path.is_file() else source.choice(sorted(path.iterdir()))
    before = victim.read_bytes()
    flip(victim, source)
    with pytest.raises(ApplianceError):
        copy.open()
    victim.write_bytes(before)
    if seed == 0:
        with copy.open() as repository:
            check_repository(repository)


def test_a_repository_that_claims_not_to_be_encrypted_is_refused(
    original: tuple[Path, Secret | None], tmp_path: Path
) -> None:
    """Although its checksum is right: later backups would be written in clear."""
    path, passphrase = original
    if passphrase is None:
        return
    shutil.copytree(path, tmp_path / "r")
    file = tmp_path / "r" / CONFIG_NAME
    config = RepositoryConfig.model_validate_json(file.read_bytes())
    forged = config.model_copy(update={"encrypted": False})
    forged = forged.model_copy(update={"checksum": forged.expected_checksum()})
    file.chmod(0o600)
    file.write_text(forged.model_dump_json())
    with pytest.raises(CorruptError, match="disagree"):
        open_at(tmp_path / "r", passphrase)


def test_a_damaged_quarantine_note_is_named_until_everything_is_healed(copy: Copy) -> None:
    """Its digest is kept out of use all the same, and backups read all."""
    source = random.Random(4)
    with copy.open() as repository:
        pack_id = source.choice(packs_of(repository, PackKind.DATA))
        sealed = read_footer(repository.store, pack_id, repository.id)
        _, offset, stored, _, _ = next(iter_entries(sealed.entries))
    flip(copy.path / sealed.name, source, offset, offset + stored)
    with copy.open() as repository:
        disks = dict(
            zip(
                [p.point_id for p in repository.points.list()],
                [WEB, OTHER, changed_web()],
                strict=True,
            )
        )
        check(repository, read_data=True)
        (note,) = (copy.path / QUARANTINE).iterdir()
    flip(note, source)
    with copy.open() as repository:
        report = check(repository)
        assert [damage.kind for damage in report.damages] == [DamageKind.QUARANTINE_NOTE]
        for manifest in repository.points.list():
            assert repository.is_affected(manifest)
        for vm, disk in (("web", changed_web()), ("other", OTHER), ("web", WEB)):
            back_up_bytes(repository, disk, vm, full=True)
        assert [damage.repaired for damage in check(repository).damages] == [True]
        check_repository(repository)
        for point_id, disk in disks.items():
            assert restored(repository, point_id) == disk


@pytest.mark.parametrize("damage", ["deleted", "folder", "garbage", "empty", "cut", "middle"])
def test_a_lost_or_damaged_local_index_is_rebuilt(copy: Copy, damage: str) -> None:
    """It is not the only copy of anything."""
    database = copy.path / "lmdb" / "data.mdb"
    data = database.read_bytes()
    if damage == "deleted":
        database.unlink()
    elif damage == "folder":
        shutil.rmtree(copy.path / "lmdb")
    elif damage == "garbage":
        database.write_bytes(random.Random(1).randbytes(len(data)))
    elif damage == "empty":
        database.write_bytes(b"")
    elif damage == "cut":
        database.write_bytes(data[: len(data) // 2])
    else:
        garbage = random.Random(2).randbytes(len(data) - 16384)
        database.write_bytes(data[:8192] + garbage + data[8192 + len(garbage) :])
    if damage in ("garbage", "cut"):
        with pytest.raises(IndexDamagedError):
            copy.open()
    report = rebuild_index(copy.path, passphrase=copy.passphrase)
    assert report.complete
    with copy.open() as repository:
        assert_all_restore(repository)
        check_repository(repository)


def assert_all_restore(repository: Repository) -> None:
    points = [manifest.point_id for manifest in repository.points.list()]
    for point_id, disk in zip(points, [WEB, OTHER, changed_web()], strict=True):
        assert restored(repository, point_id) == disk
