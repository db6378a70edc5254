"""The API in this process, over TLS on loopback, and a small client of its own."""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from appliance.api.app import appliance_metrics as appliance_metrics
from appliance.api.app import build_application
from appliance.api.gate import SESSION_COOKIE
from appliance.api.local_socket import Site
from appliance.api.services import Services
from appliance.api.tls import ensure_certificate, own_names, server_context
from appliance.base.clock import Clock
from appliance.base.secret import Secret
from appliance.catalog.accounts import Role
from appliance.catalog.catalog import Catalog
from appliance.exports.datastore.session import SessionStore
from appliance.exports.loop_thread import LoopThread
from appliance.exports.nfs import NfsServer, PortmapMode
from appliance.repository.repository import Repository
from appliance.service.deletion import Deletion
from appliance.service.inventory import InventoryCache
from appliance.service.job_service import JobService
from appliance.service.live_feed import LiveFeed
from appliance.service.notify.post import Post
from appliance.service.places import PlacesCache
from appliance.service.points_in_use import points_in_use
from appliance.service.recovery_server import RecoveryServer
from appliance.service.recovery_service import RecoveryService
from appliance.service.repository_figures import RepositoryFigures


@dataclass
class Answer:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def document(self) -> Any:
        return json.loads(self.body)


@dataclass
class Client:
    """One browser or program; keeps its cookie as a browser would."""

    port: int
    token: str = ""
    cookie: str = ""
    csrf: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    address: str = "127.0.0.1"

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        connection = self._connection()
        sent = dict(self.headers) | headers
        if self.token:
            sent["Authorization"] = f"Bearer {self.token}"
        if self.cookie:
            sent["Cookie"] = f"{SESSION_COOKIE}={self.cookie}"
        if self.csrf:
            sent.setdefault("X-CSRF-Token", self.csrf)
        raw = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        if raw is not None:
            sent.setdefault("Content-Type", "application/json")
        connection.request(method, path, raw, sent)
        response = connection.getresponse()
        streams = response.getheader("Content-Type", "").startswith("text/event-stream")
        answer = Answer(
            response.status, response.headers, response.readline() if streams else response.read()
        )
        connection.close()
        for line in answer.headers.get_all("Set-Cookie", []):
            name, _, rest = line.partition("=")
            if name == SESSION_COOKIE:
                self.cookie = rest.partition(";")[0].strip('"')
        return answer

    @contextmanager
    def events(self, kinds: str = "") -> Iterator[Iterator[tuple[str, Any]]]:
        """What the appliance tells, as kind and fields, until the block ends."""
        connection = self._connection()
        sent = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        if self.cookie:
            sent["Cookie"] = f"{SESSION_COOKIE}={self.cookie}"
        connection.request("GET", f"/api/v1/events?kinds={kinds}", headers=sent)
        response = connection.getresponse()
        assert response.status == 200, response.read()
        try:
            yield _events(response)
        finally:
            connection.close()

    def _connection(self) -> http.client.HTTPSConnection:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return http.client.HTTPSConnection(self.address, self.port, context=context, timeout=240)

    def api(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        return self.call(method, f"/api/v1{path}", body, **headers)

    def log_in(self, name: str, password: str, code: str = "") -> Answer:
        answer = self.api("POST", "/login", {"name": name, "password": password, "code": code})
        if answer.status == 204:
            self.csrf = self.api("GET", "/me").document["csrf"]
        return answer


def make_token(catalog: Catalog, name: str, role: Role) -> str:
    """A token of the administrator "test", who is made for it."""
    if all(each.name != "test" for each in catalog.accounts.list()):
        password = Secret.of_text("a password that nobody uses")
        catalog.accounts.create("test", password, Role.ADMINISTRATOR)
    return catalog.api_tokens.create(name, role, created_by="test")


def _events(response: http.client.HTTPResponse) -> Iterator[tuple[str, Any]]:
    kind = ""
    for line in response:
        name, _, value = line.decode().rstrip("\n").partition(": ")
        if name == "event":
            kind = value
        elif name == "data":
            yield kind, json.loads(value)


@contextmanager
def api_serving(home: Path, clock: Clock | None = None) -> Iterator[tuple[Services, int]]:
    """Yield what the handlers work with, and the port."""
    with ExitStack() as stack:
        if not (home / "repository").exists():
            Repository.create(home / "repository")
        repository = stack.enter_context(Repository.open(home / "repository", clock=clock))
        catalog = stack.enter_context(Catalog.open(home, clock=clock))
        nfs = NfsServer(key=bytes(32), host="127.0.0.1", port=0, portmap_mode=PortmapMode.NONE)
        recovery = RecoveryServer(SessionStore(home / "sessions"), repository, nfs)
        jobs = JobService(catalog, repository, home, frozenset)
        recover = RecoveryService(catalog, repository, home, recovery)
        stack.callback(recover.operations.stop)
        feed = LiveFeed(jobs, recover.operations, recovery.sessions, catalog.clock, every_s=0.05)
        feed.start()
        stack.callback(feed.stop)
        jobs.points.refresh()
        inventory = InventoryCache(catalog)
        stack.callback(inventory.stop)
        places = PlacesCache(catalog)
        stack.callback(places.stop)
        figures = RepositoryFigures(repository, catalog.clock)
        stack.callback(figures.stop)
        services = Services(
            home=home,
            catalog=catalog,
            repository=repository,
            repository_path=home / "repository",
            recovery=recovery,
            inventory=inventory,
            places=places,
            jobs=jobs,
            recover=recover,
            feed=feed,
            post=Post(catalog),
            figures=figures,
            deletion=Deletion(catalog, repository, lambda: points_in_use(home)),
        )
        ensure_certificate(home, catalog.clock, own_names())
        loop = LoopThread("api-of-test")
        stack.callback(loop.stop)
        site = Site(build_application(services))
        port = loop.call(site.start_tls("127.0.0.1", 0, server_context(home)))
        stack.callback(lambda: loop.call(site.stop()))
        yield services, port
