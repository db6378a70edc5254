"""The web interface: what each page shows to whom."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import pytest

from appliance.api.permissions import may
from appliance.api.services import Services
from appliance.api.ui.pages import PAGES
from appliance.base.secret import Secret
from appliance.catalog.accounts import Role
from appliance.catalog.job import JOB, VerificationJob
from appliance.catalog.policy import Policy
from appliance.catalog.vm_checks import Group
from tests.support.api_server import Client, api_serving
from tests.support.small_backups import back_up_bytes

NIGHTLY = {"name": "nightly", "kind": "backup", "policy": "nightly", "select": {"names": ["web"]}}
PASSWORD = "correct horse battery"
HOSTILE = "<script>alert(1)</script>"


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Services, int]]:
    with api_serving(tmp_path) as (services, port):
        yield services, port


def logged_in(services: Services, port: int, role: Role) -> Client:
    services.catalog.accounts.create(str(role), Secret.of_text(PASSWORD), role)
    client = Client(port)
    assert client.log_in(str(role), PASSWORD).status == 204
    return client


def test_whoever_is_not_logged_in_sees_the_login_and_nothing_else(
    served: tuple[Services, int],
) -> None:
    """Every page is the set-up form at first, and the login form afterwards."""
    services, port = served
    for page in PAGES:
        text = Client(port).call("GET", re.sub(r"{\w+}", "x", page.address)).body.decode()
        assert "Set-up token" in text
        assert "<nav" not in text
    logged_in(services, port, Role.READ_ONLY)
    assert "One-time code" in Client(port).call("GET", "/").body.decode()


@pytest.mark.parametrize("role", list(Role))
def test_every_page_opens_for_those_it_is_for(served: tuple[Services, int], role: Role) -> None:
    """A page of real data renders whole, with one heading and its language; others are refused."""
    services, port = served
    point = back_up_bytes(services.repository, b"x" * 100_000, "web").point_id
    client = logged_in(services, port, role)
    policy, job = Policy(name="nightly"), JOB.validate_python(NIGHTLY)
    services.jobs.book.create([policy], [job])
    for page in PAGES:
        path = page.address.replace("{point}", point).replace("{name}", "web")
        path = path.replace("{job}", "nightly").replace("{policy}", "nightly")
        answer = client.call("GET", re.sub(r"{(run|operation|sequence)}", "1", path))
        text = answer.body.decode()
        if not may(role, page.permission):
            assert answer.status == 403
            continue
        if re.search(r"{(run|operation|sequence)}", path):
            assert answer.status == 404
            continue
        assert answer.status == 200, text
        assert text.count("<h1>") == 1
        assert '<html lang="en">' in text
        assert "style=" not in text


def test_text_from_elsewhere_is_never_markup(served: tuple[Services, int]) -> None:
    """A VM may be called anything."""
    services, port = served
    back_up_bytes(services.repository, b"x" * 10_000, HOSTILE)
    client = logged_in(services, port, Role.ADMINISTRATOR)
    for path in ("/vms/%3Cscript%3Ealert%281%29%3C%2Fscript%3E", "/", "/runs"):
        answer = client.call("GET", path)
        assert answer.status == 200
        assert HOSTILE not in answer.body.decode()


def test_static_files_come_from_one_folder_only(served: tuple[Services, int]) -> None:
    """What the pages need is there, what lies beside it is not."""
    _, port = served
    client = Client(port)
    assert client.call("GET", "/static/app.js").status == 200
    for path in ("/static/../pages.py", "/static/%2e%2e/pages.py", "/static/"):
        assert client.call("GET", path).status in (400, 403, 404)


def test_a_channel_is_made_by_the_form_of_its_page(served: tuple[Services, int]) -> None:
    """The fields of the page are those of the API; its secret is not on the page afterwards."""
    services, port = served
    client = logged_in(services, port, Role.OPERATOR)
    text = client.call("GET", "/notifications").body.decode()
    assert "nobody is told" in text
    form = {
        "_csrf": client.csrf,
        "_api": "POST /notifications",
        "_next": "/notifications",
        "channel.kind": "email",
        "channel.name": "mail",
        "channel.server": "mx.example.org",
        "channel.port": "587",
        "channel.security": "starttls",
        "channel.sender": "a@example.org",
        "channel.recipients[]": "b@example.org\nc@example.org",
        "channel.user": "holdfast",
        "channel.occasions[]": "failed",
        "channel.digest_at": "",
        "secret": "a password of the server",
    }
    for name in form:
        assert name.startswith("_") or f'name="{name}"' in text, name
    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    assert client.call("POST", "/form", urlencode(form).encode(), **kind).status == 303
    text = client.call("GET", "/notifications").body.decode()
    assert "b@example.org, c@example.org" in text
    assert "a password of the server" not in text


def test_a_verification_is_made_and_changed_by_its_form(served: tuple[Services, int]) -> None:
    """The fields of the form are those of the job; one with groups is changed as a file only."""
    services, port = served
    client = logged_in(services, port, Role.OPERATOR)
    form = {
        "_csrf": client.csrf,
        "_api": "POST /jobs",
        "_next": "/jobs/{name}",
        "job.kind": "verification",
        "job.name": "proof",
        "job.where": "both",
        "job.probes[]": "tcp:22\nhttp:80/ status=200",
        "job.timeout": "5min",
        "job.memory_mib": "1024",
        "job.hash_share": "0.5",
        "job.check_file_systems": "true",
        "job.select.names[]": "web*",
        "policy.schedule.at[]": "06:00",
        "policy.guest_logs": "truncate",
        "policy.rto": "15min",
        "policy.rpo": "26h",
    }
    text = client.call("GET", "/new-job?job.kind=verification").body.decode()
    for name in form:
        assert name.startswith("_") or f'name="{name}"' in text, name
    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    assert client.call("POST", "/form", urlencode(form).encode(), **kind).status == 303
    saved = services.catalog.jobs.get("proof")
    assert isinstance(saved.job, VerificationJob)
    assert (saved.job.where, saved.job.memory_mib, saved.job.hash_share) == ("both", 1024, 0.5)
    assert saved.job.probes == ("tcp:22", "http:80/ status=200")
    assert saved.policy.guest_logs == "truncate"
    assert (saved.policy.rto, saved.policy.rpo) == ("15min", "26h")
    address = "/jobs/proof/edit"
    assert 'value="15min"' in client.call("GET", address).body.decode()
    services.jobs.book.save(
        [], [saved.job.model_copy(update={"groups": (Group(name="shop", order=("db", "web")),)})]
    )
    text = client.call("GET", address).body.decode()
    assert "changed as a job file" in text and 'id="job-form"' not in text
