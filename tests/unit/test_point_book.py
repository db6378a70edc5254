"""The catalog's list of recovery points follows the repository, and sums follow the list."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from appliance.catalog.catalog import Catalog
from appliance.catalog.points import PointRow
from appliance.repository.repository import Repository
from appliance.service.point_book import PointBook, point_row
from tests.support.small_backups import back_up_bytes


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    with Catalog.open(tmp_path) as catalog:
        yield catalog


def row(number: int, vm: str, created_at: datetime, stored: int = 10) -> PointRow:
    return PointRow(
        point_id=f"{created_at:%Y%m%dT%H%M%SZ}-{number:012x}",
        vm=vm,
        vm_key=f"server/{vm}-{number % 2}",
        created_at=created_at,
        consistency="crash",
        parent=None,
        source="vsphere",
        disk_count=1,
        size_bytes=100,
        stored_bytes=stored,
    )


def test_sums_per_vm_and_day_are_those_of_the_points(catalog: Catalog) -> None:
    """After any adding and removing, in any order, also of what is known already."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    start = datetime(2026, 11, 1, tzinfo=UTC)
    kept: dict[str, PointRow] = {}
    for number in range(300):
        if kept and chance.random() < 0.4:
            gone = chance.sample(sorted(kept), k=min(len(kept), 3))
            catalog.points.remove([*gone, "unknown"])
            for point_id in gone:
                del kept[point_id]
        else:
            at = start + timedelta(hours=chance.randrange(200))
            new = row(number, chance.choice("abc"), at, chance.randrange(1000))
            catalog.points.add([new, new])
            kept[new.point_id] = new
    points = list(kept.values())
    assert list(catalog.points.ids()) == sorted(kept)
    days: Counter[object] = Counter()
    for each in points:
        days[each.created_at.date()] += each.stored_bytes
    assert catalog.points.stored_by_day(start.date()) == days
    for vm in catalog.points.vms():
        mine = [each for each in points if each.vm == vm.vm]
        newest = max(mine, key=lambda each: (each.created_at, each.point_id))
        assert vm.point_count == len(mine)
        assert vm.stored_bytes == sum(each.stored_bytes for each in mine)
        assert (vm.newest_id, vm.newest_at) == (newest.point_id, newest.created_at)
        assert vm.vm_key == newest.vm_key
    assert {vm.vm for vm in catalog.points.vms()} == {each.vm for each in points}
    assert catalog.points.totals().point_count == len(points)


def test_the_book_follows_this_process_at_once_and_others_when_it_looks(
    tmp_path: Path, catalog: Catalog
) -> None:
    """Commits and removals of both, a lost catalog, and a manifest that cannot be read."""
    Repository.create(tmp_path / "repository")
    with Repository.open(tmp_path / "repository") as repository:
        first = back_up_bytes(repository, b"1" * 5000, "web")
        book = PointBook(catalog, repository)
        assert not catalog.points.page()
        assert book.refresh().added == 1
        second = back_up_bytes(repository, b"2" * 5000, "web")
        both = sorted((first, second), key=lambda each: each.point_id, reverse=True)
        assert catalog.points.page() == [point_row(each) for each in both]
        repository.points.forget(first.id)
        assert catalog.points.page() == [point_row(second)]
        with Repository.open(tmp_path / "repository") as other:
            third = back_up_bytes(other, b"3" * 5000, "db")
            other.points.forget(second.id)
        change = book.refresh()
        assert (change.added, change.removed, change.damaged) == (1, 1, 0)
        assert catalog.points.page() == [point_row(third)]
        (blob,) = (tmp_path / "repository" / "points").glob(f"{third.point_id}*")
        catalog.points.remove([third.point_id])
        repository.points.drop_cache()
        blob.chmod(0o600)
        blob.write_bytes(b"damaged")
        assert book.refresh().damaged == 1


def test_a_page_goes_on_where_the_one_before_ended(catalog: Catalog) -> None:
    """Newest first, of all VMs or one, none twice and none left out."""
    start = datetime(2026, 11, 1, tzinfo=UTC)
    rows = [row(n, "ab"[n % 2], start + timedelta(hours=n)) for n in range(25)]
    catalog.points.add(rows)
    for vm, expected in ((None, rows), ("a", rows[::2])):
        seen: list[PointRow] = []
        while page := catalog.points.page(
            vm=vm, before=seen[-1].point_id if seen else None, limit=4
        ):
            seen += page
        assert seen == list(reversed(expected))
