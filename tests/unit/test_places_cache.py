"""What hosts offer is asked once for a while, and a slow host keeps nobody waiting."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from appliance.base.errors import SourceError
from appliance.catalog.catalog import Catalog
from appliance.catalog.hosts import HostRecord
from appliance.service.places import PlacesCache
from appliance.sources.host_places import HostPlaces
from tests.support.registered_hosts import add_host

LAN = HostPlaces(networks=("LAN",))


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    with Catalog.open(tmp_path) as catalog:
        yield catalog


class Hosts:
    """Answers as a test says, and counts how often it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.may_answer = threading.Event()

    def __call__(self, record: HostRecord) -> HostPlaces:
        self.asked.append(record.name)
        if record.name == "slow":
            self.may_answer.wait(60)
        if record.name == "broken":
            raise SourceError("it refuses")
        return LAN


@contextmanager
def cache(catalog: Catalog, hosts: Hosts, kept_s: float = 1e9) -> Iterator[PlacesCache]:
    made = PlacesCache(catalog, ask=hosts, kept_s=kept_s)
    try:
        yield made
    finally:
        hosts.may_answer.set()
        made.stop()


def test_a_host_is_asked_once_until_its_answer_is_old(catalog: Catalog) -> None:
    """Also one that failed: it would make every page wait."""
    add_host(catalog, "broken")
    add_host(catalog, "good")
    hosts = Hosts()
    with cache(catalog, hosts) as places:
        for _ in range(2):
            broken, good = places.get(within_s=60)
            assert (good.places, good.failure) == (LAN, None)
            assert (broken.places, broken.failure) == (HostPlaces(), "it refuses")
    assert sorted(hosts.asked) == ["broken", "good"]
    with cache(catalog, hosts, kept_s=-1.0) as places:
        places.get(within_s=60)
        places.get(within_s=60)
    assert sorted(hosts.asked) == ["broken"] * 3 + ["good"] * 3


def test_a_slow_host_is_late_now_and_known_the_next_time(catalog: Catalog) -> None:
    """It is not asked again while it is still to answer."""
    add_host(catalog, "slow")
    hosts = Hosts()
    with cache(catalog, hosts, kept_s=-1.0) as places:
        for _ in range(2):
            (late,) = places.get(within_s=0)
            assert late.places == HostPlaces() and "not answered within 0 s" in str(late.failure)
        assert hosts.asked == ["slow"]
        hosts.may_answer.set()
        (known,) = places.get(within_s=60)
        assert known.places == LAN


def test_a_host_that_is_registered_anew_is_asked_anew(catalog: Catalog) -> None:
    """The answer of the one before it is not its own."""
    add_host(catalog, "good")
    hosts = Hosts()
    with cache(catalog, hosts) as places:
        places.get(within_s=60)
        catalog.hosts.remove("good")
        assert places.get(within_s=60) == []
        add_host(catalog, "good", user="another")
        places.get(within_s=60)
        catalog.hosts.remove("good")
        add_host(catalog, "good")  # with no look between
        places.get(within_s=60)
    assert hosts.asked == ["good", "good", "good"]
