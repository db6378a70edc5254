"""Jobs, policies and runs over the API and by the forms of the pages."""

from __future__ import annotations

from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from appliance.api.services import Services
from appliance.catalog.accounts import Role
from tests.support.api_server import Answer, Client, api_serving, make_token

SCRIPT = {"argv": ["/bin/true"]}
NIGHTLY: dict[str, Any] = {
    "job": {"name": "nightly", "kind": "backup", "select": {"everything": True}},
    "policy": {"schedule": {"at": ["22:00"]}, "retention": {"keep_daily": 14}},
}


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Services, int]]:
    with api_serving(tmp_path) as (services, port):
        yield services, port


@pytest.fixture
def services(served: tuple[Services, int]) -> Services:
    return served[0]


def client_of(served: tuple[Services, int], role: Role) -> Client:
    services, port = served
    token = make_token(services.catalog, str(role), role)
    return Client(port, token=token)


@pytest.fixture
def operator(served: tuple[Services, int]) -> Client:
    return client_of(served, Role.OPERATOR)


@pytest.fixture
def administrator(served: tuple[Services, int]) -> Client:
    return client_of(served, Role.ADMINISTRATOR)


def form(client: Client, fields: dict[str, str], **headers: str) -> Answer:
    headers.setdefault("Content-Type", "application/x-www-form-urlencoded")
    return client.call("POST", "/form", urlencode(fields).encode(), **headers)


def test_a_job_is_made_shown_changed_switched_and_removed(operator: Client) -> None:
    """With a policy of its own, called as the job unless it says otherwise."""
    made = operator.api("POST", "/jobs", NIGHTLY)
    assert made.status == 200, made.body
    assert (made.document["policy"], made.document["enabled"]) == ("nightly", True)
    assert made.document["next_run_at"] is not None
    assert operator.api("POST", "/jobs", NIGHTLY).document["code"] == "job.exists"
    changed = NIGHTLY | {"policy": {"retention": {"keep_last": 3}}}
    shown = operator.api("PUT", "/jobs/nightly", changed).document
    assert shown["policy_fields"]["retention"]["keep_last"] == 3
    assert shown["next_run_at"] is None
    assert not operator.api("POST", "/jobs/nightly/disable").document["enabled"]
    assert operator.api("POST", "/jobs/nightly/enable").document["enabled"]
    assert [each["name"] for each in operator.api("GET", "/jobs").document] == ["nightly"]
    in_use = operator.api("DELETE", "/policies/nightly")
    assert (in_use.status, in_use.document["code"]) == (409, "policy.in-use")
    assert operator.api("DELETE", "/jobs/nightly").status == 204
    assert operator.api("GET", "/jobs/nightly").status == 404
    assert operator.api("GET", "/policies").document == []


def test_mistakes_are_told_and_nothing_is_saved(operator: Client, services: Services) -> None:
    """The field is named; a policy that is not used would be a trap, so it is refused."""
    wrong: tuple[dict[str, Any], ...] = (
        {"job": NIGHTLY["job"] | {"select": {}}},
        {"job": NIGHTLY["job"] | {"policy": "none"}},
        {"job": NIGHTLY["job"] | {"policy": "other"}, "policy": {"name": "nightly"}},
        {"job": NIGHTLY["job"] | {"select": {"everything": True, "hosts": ["none"]}}},
        NIGHTLY | {"policy": {"schedule": {"at": ["25:00"]}}},
        NIGHTLY | {"policy": {"time_zone": "Nowhere/Land"}},
    )
    for body in wrong:
        answer = operator.api("POST", "/jobs", body)
        assert answer.status in (404, 422), body
    assert services.catalog.jobs.list() == [] and services.catalog.jobs.policies() == []


def test_only_administrators_set_scripts(operator: Client, administrator: Client) -> None:
    """Which run as the appliance itself; who may change a policy may leave them as they are."""
    with_script = NIGHTLY | {"policy": NIGHTLY["policy"] | {"before": SCRIPT}}
    refused = operator.api("POST", "/jobs", with_script)
    assert (refused.status, refused.document["code"]) == (403, "api.forbidden")
    text = '[policy.p]\nafter = { argv = ["/bin/true"] }\n'
    body = {"text": text, "dry_run": False}
    assert operator.api("POST", "/job-file", body).status == 403
    assert operator.api("POST", "/policies", {"policy": {"name": "p", "after": SCRIPT}}).status == (
        403
    )
    assert administrator.api("POST", "/jobs", with_script).status == 200
    kept = {"policy": {"name": "nightly", "before": SCRIPT, "retention": {"keep_last": 2}}}
    assert operator.api("PUT", "/policies/nightly", kept).status == 200
    other = {"policy": {"name": "nightly", "before": {"argv": ["/bin/false"]}}}
    assert operator.api("PUT", "/policies/nightly", other).status == 403
    assert operator.api("PUT", "/policies/nightly", {"policy": {"name": "nightly"}}).status == 403


def test_a_preview_says_what_is_kept_and_saves_nothing(
    operator: Client, services: Services
) -> None:
    """Of a policy that is not saved."""
    body = {"policy": {"name": "p", **NIGHTLY["policy"]}, "days": 30}
    shown = operator.api("POST", "/policies/preview", body).document
    assert (len(shown["kept"]), shown["run_count"]) == (14, 30)
    assert services.catalog.jobs.policies() == []
    assert operator.api("POST", "/jobs/preview", {"select": {"everything": True}}).status == 422


def test_a_job_file_is_compared_and_applied_but_names_no_file_of_the_appliance(
    operator: Client,
) -> None:
    """What it says of hosts must be so already."""
    text = '[policy.p]\nretention = { keep_last = 2 }\n[job.gc]\nkind = "gc"\npolicy = "p"\n'
    dry = operator.api("POST", "/job-file", {"text": text}).document
    assert [(each["section"], each["action"]) for each in dry["changed"]] == [
        ("policy", "add"),
        ("job", "add"),
    ]
    assert operator.api("GET", "/jobs").document == []
    assert operator.api("POST", "/job-file", {"text": text, "dry_run": False}).status == 200
    assert [job["name"] for job in operator.api("GET", "/jobs").document] == ["gc"]
    assert "[job.gc]" in operator.api("GET", "/job-file").document["text"]
    host = f'[host.a]\naddress = "h"\nuser = "u"\nfingerprint = "{"ab" * 32}"\n'
    for more in ("", 'password_file = "/etc/passwd"\n'):
        answer = operator.api("POST", "/job-file", {"text": host + more, "dry_run": False})
        assert (answer.status, answer.document["code"]) == (422, "usage")


def test_a_run_is_asked_for_once_and_cancelled_while_it_waits(
    served: tuple[Services, int], operator: Client
) -> None:
    """Without a daemon it waits; a second one is refused; who only reads may do neither."""
    operator.api("POST", "/jobs", {"job": {"name": "gc", "kind": "gc"}})
    reader = client_of(served, Role.READ_ONLY)
    assert reader.api("POST", "/jobs/gc/run").status == 403
    run = operator.api("POST", "/jobs/gc/run").document
    assert (run["state"], run["cause"]) == ("waiting", "manual")
    again = operator.api("POST", "/jobs/gc/run")
    assert (again.status, again.document["code"]) == (409, "job.running")
    assert reader.api("GET", f"/runs/{run['run_id']}").document["live"] is None
    assert operator.api("POST", f"/runs/{run['run_id']}/cancel").status == 204
    (ended,) = reader.api("GET", "/runs?job=gc").document
    assert ended["outcome"] == "cancelled"
    late = operator.api("POST", f"/runs/{run['run_id']}/cancel")
    assert (late.status, late.document["code"]) == (409, "run.ended")
    assert reader.api("GET", f"/runs?before={ended['seq']}").document == []


def test_a_form_is_a_call_of_the_api(operator: Client, services: Services) -> None:
    """Flat fields become the body, the browser goes on to what was made, the audit log has it."""
    fields = {
        "_api": "POST /jobs",
        "_next": "/jobs/{name}",
        "job.name": "web",
        "job.kind": "backup",
        "job.select.names[]": "web*\r\ndb1",
        "policy.schedule.at[]": "22:00",
        "policy.retention.keep_daily": "7",
        "policy.retention.keep_weekly": "",
    }
    answer = form(operator, fields)
    assert (answer.status, answer.headers["Location"]) == (303, "/jobs/web")
    saved = services.catalog.jobs.get("web")
    assert saved.policy.retention.keep_daily == 7
    assert saved.job.model_dump()["select"]["names"] == ("web*", "db1")
    assert services.catalog.audit.page(limit=1)[0].action == "POST /jobs"
    again = form(operator, fields)
    assert again.status == 409 and b"There is a job or a policy of this name" in again.body
    as_json = form(operator, fields, Accept="application/json")
    assert as_json.document["code"] == "job.exists"


def test_a_form_asks_before_it_destroys_and_goes_nowhere_else(operator: Client) -> None:
    """Without scripts the question is a page; `_next` never leads to another site."""
    operator.api("POST", "/jobs", NIGHTLY)
    fields = {"_api": "DELETE /jobs/nightly", "_confirm": "Remove?", "_next": "//elsewhere.test/"}
    asked = form(operator, fields)
    assert asked.status == 200 and b"Remove?" in asked.body
    assert operator.api("GET", "/jobs/nightly").status == 200
    done = form(operator, fields | {"_confirmed": "yes"})
    assert (done.status, done.headers["Location"]) == (303, "/")
    assert operator.api("GET", "/jobs/nightly").status == 404


def test_a_preview_without_scripts_puts_the_fields_into_the_address(operator: Client) -> None:
    """But neither the token of the login nor what is empty."""
    fields = {"_api": "POST /jobs", "_csrf": "secret", "_preview": "/new-job"}
    answer = form(operator, fields | {"job.name": "a b", "job.policy": ""})
    assert (answer.status, answer.headers["Location"]) == (303, "/new-job?job.name=a+b")


@pytest.mark.parametrize(
    "headers",
    [{"Origin": "https://elsewhere.test"}, {"Sec-Fetch-Site": "cross-site"}],
    ids=["origin", "fetch metadata"],
)
def test_forms_of_other_sites_are_refused(operator: Client, headers: dict[str, str]) -> None:
    """Those of logging in too, which have no token."""
    for api in ("POST /login", "DELETE /jobs/nightly"):
        answer = form(operator, {"_api": api}, Accept="application/json", **headers)
        assert (answer.status, answer.document["code"]) == (403, "api.csrf")


def test_the_form_of_a_job_keeps_all_that_is_saved(operator: Client) -> None:
    """Filled from a job and sent back unchanged, it changes nothing."""
    policy = NIGHTLY["policy"] | {
        "windows": ["mon-fri 20:00-06:00"],
        "bandwidth": [{"limit": f"{rate}MiB/s"} for rate in range(1, 6)],
        "schedule": {"at": ["01:00", "22:00"], "days_of_month": [1, "last"]},
    }
    select = {"names": ["web*"], "exclude": {"tags": ["old"]}}
    body = {"job": NIGHTLY["job"] | {"select": select, "enabled": False}, "policy": policy}
    assert operator.api("POST", "/jobs", body).status == 200
    before = operator.api("GET", "/jobs/nightly").document
    fields = _fields_of_page(operator.call("GET", "/jobs/nightly/edit").body.decode())
    answer = form(operator, fields, Accept="application/json")
    assert answer.status == 200, answer.body
    after = operator.api("GET", "/jobs/nightly").document
    assert (after["job"], after["policy_fields"]) == (before["job"], before["policy_fields"])


def _fields_of_page(text: str) -> dict[str, str]:
    """What a browser would send of the form of a job."""

    class Fields(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.found: dict[str, str] = {}
            self.open = ""
            self.inside = False

        def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
            given = {name: value or "" for name, value in attributes}
            if tag == "form":
                self.inside = given.get("id") == "job-form"
            name = given.get("name", "")
            if not self.inside or not name or (tag, name) == ("button", "_preview"):
                return
            if tag == "textarea":
                self.open = name
                self.found[name] = ""
            elif tag == "select":
                self.open = f"select {name}"
            elif tag == "input" and (given.get("type") != "checkbox" or "checked" in given):
                self.found[name] = given.get("value", "")

        def handle_endtag(self, tag: str) -> None:
            if tag in ("textarea", "select"):
                self.open = ""

        def handle_data(self, data: str) -> None:
            if self.open and not self.open.startswith("select "):
                self.found[self.open] += data

    parser = Fields()
    parser.feed(text)
    return parser.found
