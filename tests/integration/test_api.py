"""The API over TLS, as browsers and programs use it, and as attackers would."""

from __future__ import annotations

import base64
import re
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

import pytest
from cryptography.hazmat.primitives.hashes import SHA1
from cryptography.hazmat.primitives.twofactor.totp import TOTP

from appliance.api.app import PREFIX
from appliance.api.gate import SESSION_COOKIE
from appliance.api.permissions import may
from appliance.api.routes import ROUTES
from appliance.api.services import Services
from appliance.base.run_context import RunContext
from appliance.base.secret import Secret
from appliance.catalog.accounts import Role
from appliance.jobs.certified_run import certify
from appliance.jobs.verification import run_verification
from appliance.jobs.verification_plan import GuestPlan, VerificationPlan
from tests.support.api_server import Client, api_serving, make_token
from tests.support.small_backups import back_up_bytes, random_disk

PASSWORD = "correct horse battery"


class FakeClock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.at = datetime(2026, 11, 21, 12, tzinfo=UTC)

    def now(self) -> datetime:
        return self.at

    def monotonic_s(self) -> float:
        return self.at.timestamp()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def served(tmp_path: Path, clock: FakeClock) -> Iterator[tuple[Services, int]]:
    with api_serving(tmp_path, clock) as (services, port):
        yield services, port


@pytest.fixture
def services(served: tuple[Services, int]) -> Services:
    return served[0]


@pytest.fixture
def nobody(served: tuple[Services, int]) -> Client:
    return Client(served[1])


def account(services: Services, role: Role, name: str = "") -> str:
    name = name or str(role)
    services.catalog.accounts.create(name, Secret.of_text(PASSWORD), role)
    return name


@pytest.fixture
def administrator(services: Services, nobody: Client) -> Client:
    account(services, Role.ADMINISTRATOR)
    client = Client(nobody.port)
    assert client.log_in("administrator", PASSWORD).status == 204
    return client


def test_the_first_account_needs_the_token_of_the_console(
    services: Services, nobody: Client
) -> None:
    """Set-up works once, with the right token, and logs in."""
    first = {"name": "admin", "password": PASSWORD, "token": "wrong"}
    assert nobody.api("GET", "/about").document["needs_setup"]
    assert nobody.api("POST", "/setup", first).status == 403
    first["token"] = services.setup_token
    assert nobody.api("POST", "/setup", first).status == 204
    assert nobody.api("GET", "/me").document["role"] == "administrator"
    assert not nobody.api("GET", "/about").document["needs_setup"]
    again = Client(nobody.port).api("POST", "/setup", first | {"name": "other"})
    assert (again.status, again.document["code"]) == (409, "account.exists")


def test_a_short_password_is_refused(services: Services, nobody: Client) -> None:
    """Twelve characters at least."""
    first = {"name": "admin", "password": "short", "token": services.setup_token}
    assert nobody.api("POST", "/setup", first).status == 422


@pytest.mark.parametrize("role", [None, *Role], ids=str)
def test_every_route_is_open_to_those_it_is_for_and_no_others(
    services: Services, nobody: Client, role: Role | None
) -> None:
    """The matrix of all routes and roles: 401 for nobody, 403 for too little, else neither."""
    client = Client(nobody.port)
    if role is not None:
        client.token = make_token(services.catalog, "t", role)
    for route in ROUTES:
        path = re.sub(r"{\w+}", "none", route.path)
        status = client.api(route.method, path, {} if route.body else None).status
        allowed = route.permission is None or (role is not None and may(role, route.permission))
        if allowed:
            assert status not in (401, 403, 500), f"{route.method} {route.path}: {status}"
        else:
            expected = 401 if role is None else 403
            assert status == expected, f"{route.method} {route.path}: {status}"


def test_a_changing_request_of_a_browser_needs_its_csrf_token(administrator: Client) -> None:
    """A page elsewhere cannot make a logged-in browser change anything."""
    body = {"name": "new", "password": PASSWORD, "role": "read-only"}
    for wrong in ("", "wrong"):
        answer = administrator.api("POST", "/accounts", body, **{"X-CSRF-Token": wrong})
        assert (answer.status, answer.document["code"]) == (403, "api.csrf")
    assert administrator.api("POST", "/accounts", body).status == 200


def test_a_login_always_begins_a_new_session(services: Services, administrator: Client) -> None:
    """A session planted before the login is not the one after it; the cookie is kept safe."""
    before = administrator.cookie
    answer = administrator.log_in("administrator", PASSWORD)
    assert administrator.cookie != before
    cookie = answer.headers["Set-Cookie"]
    assert cookie.startswith(f"{SESSION_COOKIE}=")
    for word in ("Secure", "HttpOnly", "SameSite=Strict", "Path=/"):
        assert word in cookie
    assert "Domain" not in cookie
    planted = Client(administrator.port, cookie="x" * 43)
    assert planted.api("GET", "/me").status == 401


def test_a_session_ends_with_logout_and_with_time(administrator: Client, clock: FakeClock) -> None:
    """After half an hour without use, after a day in any case, and at once on logout."""
    clock.at += timedelta(minutes=29)
    assert administrator.api("GET", "/me").status == 200
    clock.at += timedelta(minutes=31)
    assert administrator.api("GET", "/me").status == 401
    administrator.log_in("administrator", PASSWORD)
    for _ in range(50):
        clock.at += timedelta(minutes=29)
        status = administrator.api("GET", "/me").status
        if status != 200:
            break
    assert status == 401
    administrator.log_in("administrator", PASSWORD)
    old = administrator.cookie
    assert administrator.api("POST", "/logout").status == 204
    assert Client(administrator.port, cookie=old).api("GET", "/me").status == 401


def test_wrong_passwords_lock_the_account_for_a_while(
    services: Services, nobody: Client, clock: FakeClock
) -> None:
    """Guessing is stopped for the account, and says the same for a name that does not exist."""
    account(services, Role.OPERATOR)
    answers = [nobody.log_in("operator", "wrong password!") for _ in range(6)]
    assert [each.status for each in answers] == [401] * 5 + [423]
    assert nobody.log_in("operator", PASSWORD).status == 423
    clock.at += timedelta(minutes=1)
    assert nobody.log_in("operator", PASSWORD).status == 204
    unknown = Client(nobody.port).log_in("who", "wrong password!")
    assert unknown.document["error"] == answers[0].document["error"]


def test_many_logins_from_one_address_are_refused(nobody: Client) -> None:
    """Guessing over many names is stopped for the address."""
    statuses = [nobody.log_in(f"user{number}", "wrong password!").status for number in range(20)]
    assert statuses[0] == 401
    assert statuses[-1] == 429


def test_a_second_factor_is_needed_once_it_is_enabled(
    services: Services, administrator: Client, clock: FakeClock
) -> None:
    """The password alone opens nothing then, and a code works once."""
    uri = administrator.api("POST", "/me/totp").document["uri"]
    key = parse_qs(urlsplit(uri).query)["secret"][0]
    raw = base64.b32decode(key + "=" * (-len(key) % 8))
    code = TOTP(raw, 6, SHA1(), 30).generate(int(clock.at.timestamp())).decode()
    other = Client(administrator.port)
    assert other.log_in("administrator", PASSWORD).status == 401
    assert other.log_in("administrator", PASSWORD, code).status == 204
    assert Client(administrator.port).log_in("administrator", PASSWORD, code).status == 401


def test_a_change_of_an_account_is_made_whole_or_not_at_all(
    services: Services, administrator: Client
) -> None:
    """A password that is refused leaves role and state as they were."""
    account(services, Role.OPERATOR, "eve")
    change = {"role": "administrator", "disabled": True, "password": "short"}
    answer = administrator.api("PATCH", "/accounts/eve", change)
    assert answer.status == 422
    eve = services.catalog.accounts.get("eve")
    assert (eve.role, eve.disabled) == (Role.OPERATOR, False)


def test_changing_an_account_ends_its_sessions(services: Services, administrator: Client) -> None:
    """Who was made less, or got another password, must log in again."""
    account(services, Role.OPERATOR)
    operator = Client(administrator.port)
    operator.log_in("operator", PASSWORD)
    changed = administrator.api("PATCH", "/accounts/operator", {"role": "read-only"})
    assert changed.document["role"] == "read-only"
    assert operator.api("GET", "/me").status == 401
    last = administrator.api("DELETE", "/accounts/administrator")
    assert (last.status, last.document["code"]) == (409, "account.last-administrator")


def test_every_change_is_in_the_audit_log_and_the_log_shows_tampering(
    services: Services, administrator: Client, tmp_path: Path
) -> None:
    """Refused ones too, with who and why; no secret is in it; a changed entry breaks the chain."""
    administrator.api("POST", "/tokens", {"name": "ci", "role": "read-only"})
    administrator.api("DELETE", "/tokens/none")
    entries = administrator.api("GET", "/audit").document
    shown = [(each["actor"], each["action"], each["outcome"]) for each in entries[:2]]
    assert shown == [
        ("administrator", "DELETE /tokens/{name}", "token.not-found"),
        ("administrator", "POST /tokens", "ok"),
    ]
    assert PASSWORD not in str(entries)
    assert administrator.api("GET", "/audit/check").document["intact"]
    with sqlite3.connect(tmp_path / "catalog.sqlite") as other:
        for statement in ("DELETE FROM audit", "UPDATE audit SET actor = 'x'"):
            with pytest.raises(sqlite3.IntegrityError):
                other.execute(statement)
        other.execute("DROP TRIGGER audit_no_update")
        other.execute("UPDATE audit SET actor = 'nobody' WHERE id = 2")
    other.close()
    broken = administrator.api("GET", "/audit/check").document
    assert broken == {"intact": False, "first_broken": 2}


@pytest.mark.parametrize(
    "path",
    ["/../../etc/passwd", "/points/..%2f..%2fsecrets.key", "/points/%2e%2e", "/nothing"],
)
def test_a_path_leads_nowhere_it_should_not(administrator: Client, path: str) -> None:
    """Paths of requests are names of the API, never of files."""
    answer = administrator.api("GET", path)
    assert answer.status in (400, 404, 422), answer.body
    assert b"root:" not in answer.body


def test_bodies_are_bounded_and_checked(administrator: Client) -> None:
    """Too large, not JSON, unknown fields and wrong types are all the client's mistake."""
    cases = {
        b"x" * (2 << 20): 422,
        b"{": 422,
        b'{"name": "x", "password": "x", "role": "king"}': 422,
        b'{"name": "x", "password": "123456789012", "role": "operator", "more": 1}': 422,
        b"[]": 422,
    }
    for body, status in cases.items():
        assert administrator.api("POST", "/accounts", body).status == status, body[:60]
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    assert administrator.api("POST", "/accounts", b"name=x", **form).status == 422


def test_the_openapi_document_names_every_route(nobody: Client) -> None:
    """What the document says is what is served."""
    document = nobody.api("GET", "/openapi.json").document
    described = {
        (method.upper(), path) for path, item in document["paths"].items() for method in item
    }
    assert described == {(route.method, PREFIX + route.path) for route in ROUTES}
    ids = [item["operationId"] for path in document["paths"].values() for item in path.values()]
    assert len(set(ids)) == len(ids)


def test_answers_carry_the_headers_that_keep_browsers_safe(nobody: Client) -> None:
    """No framing, no sniffing, no caching, no scripts from elsewhere; on errors too."""
    for path in ("/about", "/nothing", "/me"):
        headers = nobody.api("GET", path).headers
        assert "default-src 'self'" in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cache-Control"] == "no-store"


def test_the_secret_of_a_channel_goes_in_and_never_comes_out(administrator: Client) -> None:
    """Neither by the list of channels nor by the answer to making one; failures have their code."""
    channel = {"kind": "webhook", "name": "hook", "url": "https://127.0.0.1:1/"}
    body = {"channel": channel, "secret": "a key of both sides"}
    answers = [administrator.api("POST", "/notifications", body)]
    answers.append(administrator.api("POST", "/notifications", body))
    answers.append(administrator.api("POST", "/notifications/hook/test"))
    answers.append(administrator.api("GET", "/notifications"))
    answers.append(administrator.api("DELETE", "/notifications/hook"))
    answers.append(administrator.api("POST", "/notifications/hook/test"))
    assert [each.status for each in answers] == [200, 409, 502, 200, 204, 404]
    assert answers[0].document["has_secret"]
    assert answers[2].document["code"] == "notify.unreachable"
    assert all(b"a key of both sides" not in each.body for each in answers)


def test_certificates_come_out_byte_for_byte_and_changed_ones_are_shown_as_refused(
    services: Services, administrator: Client
) -> None:
    """With the trend of the VM; what is no number is not found."""
    back_up_bytes(services.repository, random_disk(1, 8), "web")
    plan = VerificationPlan(guests=(GuestPlan(point="latest:web", hash_share=1),))
    home = services.repository_path.parent
    for run_id in ("20260101T000000Z-000000000001", "20260101T000000Z-000000000002"):
        outcome = run_verification(
            services.repository,
            plan,
            RunContext.quiet(),
            run_id=run_id,
            artifact_folder=home / "verify",
        )
        certify(home, services.catalog, services.repository.id, outcome)
    trend = administrator.api("GET", "/verifications?vm=web").document
    assert [(each["verdict"], each["certificate"]) for each in trend] == [
        ("passed", 1),
        ("passed", 2),
    ]
    listed = administrator.api("GET", "/certificates?limit=1").document
    assert [(each["sequence"], each["verdict"]) for each in listed] == [(2, "passed")]
    shown = administrator.api("GET", "/certificates/1").document
    path = services.jobs.certificates.path(1)
    assert shown["file"] == path.read_text()
    path.chmod(0o600)
    path.write_text(path.read_text().replace('"passed"', '"failed"'))
    listed = administrator.api("GET", "/certificates?before=2").document
    assert [each["kind"] for each in listed] == ["refused"]
    for none in ("0", "3", "1e9", "-1", "٣"):
        assert administrator.api("GET", f"/certificates/{quote(none)}").status == 404
