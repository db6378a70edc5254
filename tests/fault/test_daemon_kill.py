"""The daemon killed at random moments under load: what it acknowledged is there afterwards.

Several clients change things through the API and let jobs run, while the daemon is killed with
SIGKILL and started again. After the last start: every change that was answered is there, no half of
one is, no run goes on that nobody does, and catalog, audit log and repository are whole.
"""

from __future__ import annotations

import http.client
import random
import signal
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from appliance.catalog.accounts import Role
from appliance.catalog.catalog import Catalog
from appliance.catalog.job import JOB
from appliance.repository.repository import Repository
from appliance.service.point_book import PointBook
from tests.support.api_server import Client, make_token
from tests.support.check_repository import check_repository
from tests.support.holdfast_program import serving
from tests.support.small_backups import back_up_bytes

pytestmark = pytest.mark.integration

SERVE = ("serve", "--bind", "127.0.0.1", "--port", "0", "--nfs-port", "0", "--portmap", "none")
KILLS = 2
POINTS = 60
SETTLED_WITHIN_S = 60.0


@dataclass
class Load:
    """Clients that do not rest until `stop`, and what the daemon answered to.

    `asked_to_forget` also holds points that it may or may not have forgotten.
    """

    token: str
    points: list[str]
    lock: threading.Lock = field(default_factory=threading.Lock)
    tokens: set[str] = field(default_factory=set)
    channels: set[str] = field(default_factory=set)
    forgotten: set[str] = field(default_factory=set)
    asked_to_forget: set[str] = field(default_factory=set)
    runs: set[str] = field(default_factory=set)

    def make_token(self, client: Client, number: int) -> None:
        name = f"t{client.port}-{number}"
        if client.api("POST", "/tokens", {"name": name, "role": "read-only"}).status == 200:
            self._note(self.tokens, name)

    def make_channel(self, client: Client, number: int) -> None:
        name = f"c{client.port}-{number}"
        channel = {"kind": "syslog", "name": name, "server": "127.0.0.1", "transport": "udp"}
        if client.api("POST", "/notifications", {"channel": channel}).status == 200:
            self._note(self.channels, name)

    def forget_point(self, client: Client, number: int) -> None:
        if self.points:
            point = self.points.pop()
            self._note(self.asked_to_forget, point)
            if client.api("DELETE", f"/points/{point}").status == 200:
                self._note(self.forgotten, point)

    def run_job(self, client: Client, number: int) -> None:
        answer = client.api("POST", f"/jobs/{('gc', 'check')[number % 2]}/run")
        if answer.status == 200:
            self._note(self.runs, answer.document["run_id"])

    def look(self, client: Client, number: int) -> None:
        client.call("GET", ("/", "/metrics", "/api/v1/points", "/api/v1/runs")[number % 4])

    def _note(self, where: set[str], what: str) -> None:
        with self.lock:
            where.add(what)

    def start(self, port: int, stop: threading.Event) -> list[threading.Thread]:
        def work(step: Callable[[Client, int], None]) -> None:
            client, number = Client(port, token=self.token), 0
            while not stop.wait(0.02):
                number += 1
                with suppress(OSError, http.client.HTTPException):  # it was killed
                    step(client, number)

        steps = (self.make_token, self.make_channel, self.forget_point, self.run_job, self.look)
        threads = [threading.Thread(target=work, args=(step,)) for step in steps]
        for thread in threads:
            thread.start()
        return threads


def test_what_was_acknowledged_is_there_after_any_number_of_kills(tmp_path: Path) -> None:
    """Durable, whole, and nobody's runs are ended as interrupted."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    Repository.create(tmp_path / "repository")
    with Repository.open(tmp_path / "repository") as repository:
        points = [
            back_up_bytes(repository, chance.randbytes(20_000), f"vm{n % 7}").point_id
            for n in range(POINTS)
        ]
    with Catalog.open(tmp_path) as catalog:
        token = make_token(catalog, "load", Role.ADMINISTRATOR)
        jobs = [{"name": name, "kind": name} for name in ("gc", "check")]
        catalog.jobs.save([], [JOB.validate_python(job) for job in jobs])
    kept, done = list(points), Load(token, points)
    for _ in range(KILLS):
        stop = threading.Event()
        with serving(tmp_path, *SERVE) as (process, document):
            threads = done.start(document["web"]["port"], stop)
            time.sleep(chance.uniform(0.2, 2.5))  # a random moment is what is tested
            process.send_signal(signal.SIGKILL)
            process.wait()
            stop.set()
            for thread in threads:
                thread.join()
    with serving(tmp_path, *SERVE) as (_, document):
        client = Client(document["web"]["port"], token=token)
        deadline_s = time.monotonic() + SETTLED_WITHIN_S
        while any(run["state"] != "ended" for run in client.api("GET", "/runs").document):
            assert time.monotonic() < deadline_s, "a run goes on that nobody does"
            time.sleep(0.1)
        runs = {run["run_id"]: run for run in client.api("GET", "/runs?limit=1000").document}
        assert client.api("GET", "/audit/check").document["intact"]
    assert done.tokens and done.runs, "the load did nothing"
    assert done.runs <= set(runs)
    assert {run["outcome"] for run in runs.values()} <= {"success", "failed"}
    failed = {run["error_code"] for run in runs.values() if run["outcome"] == "failed"}
    assert failed <= {"run.interrupted"}
    _whole(tmp_path, kept, done)


def _whole(home: Path, kept: list[str], done: Load) -> None:
    with Catalog.open(home) as catalog:
        assert done.tokens <= {token.name for token in catalog.api_tokens.list()}
        assert done.channels <= {each.channel.name for each in catalog.notifications.channels()}
        with Repository.open(home / "repository") as repository:
            there = set(repository.points.ids())
            assert there & done.forgotten == set()
            assert set(kept) - done.asked_to_forget <= there
            PointBook(catalog, repository).refresh()
            assert set(catalog.points.ids()) == there
            check_repository(repository)
    with sqlite3.connect(home / "catalog.sqlite") as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert database.execute("PRAGMA foreign_key_check").fetchall() == []
    database.close()
