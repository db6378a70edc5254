"""The VMs of all hosts are asked for once in a while, and a host that is away keeps no page."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import pytest

from appliance.base.errors import SourceError
from appliance.catalog.catalog import Catalog
from appliance.catalog.hosts import HostRecord
from appliance.service import inventory
from appliance.service.inventory import InventoryCache
from appliance.sources.listed_vm import ListedVm
from tests.support.registered_hosts import add_host

WEB, DB = cast(ListedVm, "web"), cast(ListedVm, "db")


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    with Catalog.open(tmp_path) as catalog:
        for name in ("east", "west"):
            add_host(catalog, name)
        yield catalog


class Hosts:
    """`west` answers as the test says; counts how often each was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.west: tuple[ListedVm, ...] | None = (DB,)  # None: it refuses
        self.silent = False
        self.may_answer = threading.Event()

    def __call__(self, record: HostRecord) -> tuple[ListedVm, ...]:
        self.asked.append(record.name)
        if record.name == "east":
            return (WEB,)
        if self.silent:
            self.may_answer.wait(60)
        if self.west is None:
            raise SourceError("it refuses")
        return self.west


@contextmanager
def cache(catalog: Catalog, hosts: Hosts, kept_s: float = 1e9) -> Iterator[InventoryCache]:
    made = InventoryCache(catalog, ask=hosts, kept_s=kept_s)
    try:
        yield made
    finally:
        hosts.may_answer.set()
        made.stop()


def test_a_host_is_asked_once_until_its_answer_is_old(catalog: Catalog) -> None:
    """Also one that failed: every page would wait for it. Who wants it fresh asks at once."""
    hosts = Hosts()
    hosts.west = None
    with cache(catalog, hosts) as cached:
        for _ in range(3):
            found = cached.get()
            assert (found.vms, list(found.failures)) == ((WEB,), ["west"])
        assert sorted(hosts.asked) == ["east", "west"]
        hosts.west = (DB,)
        assert cached.get(fresh=True).vms == (WEB, DB)
        catalog.hosts.remove("east")
        assert cached.get().vms == (DB,)


def test_a_host_that_is_away_makes_nobody_wait_again(catalog: Catalog) -> None:
    """While it is asked once more its failure is shown; what it had once is still known."""
    hosts = Hosts()
    with cache(catalog, hosts, kept_s=-1.0) as cached:
        assert cached.get().vms == (WEB, DB)
        hosts.west = None
        assert str(cached.get().failures["west"]) == "it refuses"
        hosts.silent = True
        for _ in range(3):  # with the host silent: these return all the same
            found = cached.get()
            assert (found.vms, str(found.failures["west"])) == ((WEB,), "it refuses")
        assert hosts.asked.count("west") == 3
        assert cached.known() == [WEB, DB]


def test_a_host_that_has_become_slow_is_shown_as_it_was(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a moment; a host of which nothing is known yet is said to be late."""
    monkeypatch.setattr(inventory, "_AGAIN_S", 0.01)
    monkeypatch.setattr(inventory, "_FIRST_S", 0.01)
    hosts = Hosts()
    with cache(catalog, hosts, kept_s=-1.0) as cached:
        while len(cached.get().vms) < 2:
            pass
        hosts.silent = True
        found = cached.get()
        assert DB in found.vms and not found.failures
    hosts = Hosts()
    hosts.silent = True
    with cache(catalog, hosts) as cached:
        assert cached.get().failures["west"].code == "host.late"
