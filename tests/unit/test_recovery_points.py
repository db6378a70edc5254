"""Listing recovery points: one file in the folder that is not right leaves the others usable."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.repository.format import DOCUMENT_HEADER, point_name
from appliance.repository.gc import collect_garbage
from appliance.repository.repository import Repository
from appliance.repository.verify import DamageKind, check
from tests.support.check_repository import check_repository, restored
from tests.support.small_backups import SMALL_PACKS, back_up_bytes, random_disk

WEB = bytes(random_disk(1, 100))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    Repository.create(tmp_path / "r")
    return tmp_path / "r"


@pytest.fixture
def repository(path: Path) -> Iterator[Repository]:
    with Repository.open(path, options=SMALL_PACKS) as repository:
        yield repository


@pytest.mark.parametrize("bit", range(16))
def test_a_flipped_bit_in_the_version_of_a_manifest_damages_that_point_only(
    repository: Repository, path: Path, bit: int
) -> None:
    """It is not taken for the work of a newer version, which would stop everything."""
    damaged = back_up_bytes(repository, WEB)
    whole = back_up_bytes(repository, WEB, "other")
    blob = path / point_name(damaged.point_id)
    data = bytearray(blob.read_bytes())
    data[DOCUMENT_HEADER.size - 8 + bit // 8] ^= 1 << bit % 8
    blob.write_bytes(data)
    repository.points.drop_cache()
    assert repository.points.list() == [whole]
    (found,) = check(repository).damages
    assert (found.kind, found.name) == (DamageKind.RECOVERY_POINT, point_name(damaged.point_id))


def test_a_copy_of_a_manifest_under_another_name_is_no_point(
    repository: Repository, path: Path
) -> None:
    """What a file tool leaves beside a point keeps nobody from listing, checking or collecting."""
    manifest = back_up_bytes(repository, WEB)
    blob = path / point_name(manifest.point_id)
    for name in ("copy-of-a.point", f"{manifest.point_id}.conflict-20261121.point"):
        shutil.copy(blob, blob.with_name(name))
    assert repository.points.ids() == [manifest.point_id]
    assert repository.points.list() == [manifest]
    collect_garbage(repository)
    check_repository(repository)
    assert restored(repository, manifest.point_id) == WEB
