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
from appliance.catalog.channel import CHANNEL
from appliance.catalog.job import JOB, VerificationJob
from appliance.catalog.policy import Policy
from appliance.catalog.vm_checks import Group
from appliance.machine.layout import Layout
from appliance.machine.settings import MachineSettings
from tests.support.api_server import Client, api_serving, make_token
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


def test_a_name_with_a_slash_is_one_name(served: tuple[Services, int]) -> None:
    """A Hyper-V VM may have one, a token too: its page opens, its button works."""
    services, port = served
    back_up_bytes(services.repository, b"x" * 10_000, "shop/web")
    make_token(services.catalog, "ci/deploy", Role.READ_ONLY)
    client = logged_in(services, port, Role.ADMINISTRATOR)
    page = client.call("GET", "/vms").body.decode()
    (address,) = re.findall(r'href="(/vms/[^"]*web)"', page)
    assert client.call("GET", address).status == 200
    page = client.call("GET", "/accounts").body.decode()
    (revoke,) = re.findall(r'value="(DELETE /tokens/[^"]*)"', page)
    form = {"_csrf": client.csrf, "_api": revoke, "_next": "/accounts"}
    kind = {"Content-Type": "application/x-www-form-urlencoded", "Accept": "application/json"}
    assert client.call("POST", "/form", urlencode(form).encode(), **kind).status == 200
    assert services.catalog.api_tokens.list() == []


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


def test_a_channel_without_occasions_tells_the_digest_only(served: tuple[Services, int]) -> None:
    """No box ticked means nothing at once; without a digest it would tell nothing: refused."""
    services, port = served
    client = logged_in(services, port, Role.OPERATOR)
    assert 'name="_list" value="channel.occasions[]"' in (
        client.call("GET", "/notifications").body.decode()
    )
    form = {
        "_csrf": client.csrf,
        "_api": "POST /notifications",
        "_list": "channel.occasions[]",
        "channel.kind": "syslog",
        "channel.name": "log",
        "channel.server": "log.example.org",
    }
    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = client.call("POST", "/form", urlencode(form).encode(), **kind)
    assert answer.status == 422 and "it would tell nothing" in answer.body.decode()
    form["channel.digest_at"] = "07:00"
    assert client.call("POST", "/form", urlencode(form).encode(), **kind).status == 303
    (state,) = services.catalog.notifications.channels()
    assert (state.channel.occasions, state.channel.digest_at) == ((), "07:00")


def test_the_address_of_the_deployment_is_offered_to_the_first_mail_channel(
    served: tuple[Services, int], tmp_path: Path
) -> None:
    """Read anew each time, as the console may change it; a damaged cache offers nothing."""
    services, port = served
    client = logged_in(services, port, Role.OPERATOR)
    services.machine = Layout(root=tmp_path / "machine")
    services.machine.configuration.mkdir(parents=True)
    for raw, offered in (
        (b"no settings", False),
        (MachineSettings(admin_email="ops@example.org").to_json(), True),
    ):
        services.machine.settings.write_bytes(raw)
        for page in ("/notifications", "/settings"):
            text = client.call("GET", page).body.decode()
            assert ("ops@example.org" in text) is offered, page
    fields = {
        "kind": "email",
        "name": "mail",
        "server": "mx.example.org",
        "sender": "holdfast@example.org",
        "recipients": ["other@example.org"],
    }
    services.catalog.notifications.add(CHANNEL.validate_python(fields), None)
    assert "ops@example.org" not in client.call("GET", "/notifications").body.decode()


def test_a_verification_is_made_and_changed_by_its_form(served: tuple[Services, int]) -> None:
    """The fields of the form are those of the job."""
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


def test_applications_and_checks_of_some_vms_are_changed_by_the_form(
    served: tuple[Services, int],
) -> None:
    """Rows that are filled are kept in their order, an emptied one goes; there is always room."""
    services, port = served
    client = logged_in(services, port, Role.OPERATOR)
    proof = {
        "name": "proof",
        "kind": "verification",
        "probes": ["tcp:22"],
        "groups": [{"name": "shop", "order": ["db", "web"]}],
        "vms": [{"names": ["db*"], "probes": ["tcp:5432"], "cpus": 2, "disk_interface": "sata"}],
    }
    services.jobs.book.save([], [JOB.validate_python(proof)])
    address = "/jobs/proof/edit"
    text = client.call("GET", address).body.decode()
    for shown in ("job.groups.2.name", "job.vms.2.names[]", "job.vms.0.cpus"):
        assert f'name="{shown}"' in text
    assert 'value="shop"' in text and ">db\nweb</textarea>" in text and ">tcp:5432<" in text
    form = {
        "_csrf": client.csrf,
        "_api": "PUT /jobs/proof",
        "job.name": "proof",
        "job.kind": "verification",
        "job.probes[]": "tcp:22",
        "job.groups.0.name": "",
        "job.groups.0.order[]": "",
        "job.groups.1.name": "mail",
        "job.groups.1.order[]": "dns\nmail",
        "job.vms.0.names[]": "db*",
        "job.vms.0.probes[]": "tcp:5433",
        "job.vms.1.names[]": "web*",
        "job.vms.1.memory_mib": "2048",
        "job.vms.2.names[]": "",
    }
    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    assert client.call("POST", "/form", urlencode(form).encode(), **kind).status == 303
    job = services.catalog.jobs.get("proof").job
    assert isinstance(job, VerificationJob)
    assert job.groups == (Group(name="mail", order=("dns", "mail")),)
    assert [(each.names, each.probes, each.memory_mib) for each in job.vms] == [
        (("db*",), ("tcp:5433",), None),
        (("web*",), None, 2048),
    ]
    asked = urlencode([pair for pair in form.items() if not pair[0].startswith("_") and pair[1]])
    text = client.call("GET", f"{address}?{asked}").body.decode()
    assert 'value="mail"' in text and 'name="job.groups.3.name"' in text


def test_a_verification_that_asks_nothing_of_some_vms_is_changed_as_a_file(
    served: tuple[Services, int],
) -> None:
    """An empty field of a form is "as for all"; saving it would ask those VMs for more."""
    services, port = served
    client = logged_in(services, port, Role.OPERATOR)
    proof = {
        "name": "proof",
        "kind": "verification",
        "probes": ["tcp:22"],
        "vms": [{"names": ["appliance*"], "probes": []}],
    }
    services.jobs.book.save([], [JOB.validate_python(proof)])
    text = client.call("GET", "/jobs/proof/edit").body.decode()
    assert "changed as a job file" in text and 'id="job-form"' not in text
