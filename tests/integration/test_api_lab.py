"""The API against the practice vCenter, as the pages use it: a job made, run and watched; an
instant recovery started, finalised and discarded; a restore."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from appliance.api.tls import fingerprint
from appliance.catalog.accounts import Role
from appliance.cli.main import main
from tests.support.api_server import Client, make_token
from tests.support.instant_lab import InstantLab, instant_lab
from tests.support.lab_nfs import needs_nfs_datastores

pytestmark = pytest.mark.integration

NIGHTLY: dict[str, Any] = {
    "job": {"name": "nightly", "kind": "backup", "select": {"names": ["web"]}},
    "policy": {
        "schedule": {"at": ["22:00"]},
        "retention": {"keep_last": 2},
        "consistency": {"wanted": "crash"},
    },
}
GOOD = ("success", "warning")  # a disk of this machine that is rather full is a warning


@pytest.fixture(scope="module")
def here() -> Iterator[InstantLab]:
    needs_nfs_datastores()
    with instant_lab() as opened:
        yield opened


@pytest.fixture(scope="module")
def client(here: InstantLab) -> Iterator[Client]:
    with here.lab.catalog() as catalog:
        token = make_token(catalog, "t", Role.OPERATOR)
    with here.serve() as (_, document):
        yield Client(document["web"]["port"], token=token, address=here.address)


def ended(client: Client, operation: Any) -> dict[str, Any]:
    """Follow an operation by its events to its end."""
    assert operation.status == 200, operation.body
    run_id = operation.document["run_id"]
    with client.events("operation") as events:
        while True:
            shown: dict[str, Any] = client.api("GET", f"/operations/{run_id}").document
            if shown["outcome"] is not None:
                return shown
            next(events)


@pytest.mark.timeout(300)
def test_a_job_is_made_run_and_watched(client: Client) -> None:
    """The selection is previewed, the run told of by events, the new point is listed."""
    meant = client.api("POST", "/jobs/preview", {"select": {"names": ["we*"]}}).document
    assert [vm["name"] for vm in meant["vms"]] == ["web"] and meant["vms"][0]["has_points"]
    assert client.api("POST", "/jobs", NIGHTLY).status == 200
    before = len(client.api("GET", "/points?vm=web").document)
    with client.events("run") as events:
        assert next(events)[0] == "resync"
        run = client.api("POST", "/jobs/nightly/run").document
        mine = (fields for _, fields in events if fields.get("run_id") == run["run_id"])
        assert next(fields for fields in mine if fields["outcome"])["outcome"] == "success"
    shown = client.api("GET", f"/runs/{run['run_id']}").document
    assert [vm["vm"] for vm in shown["vm_runs"]] == ["web"]
    assert len(client.api("GET", "/points?vm=web").document) == before + 1
    page = client.call("GET", f"/runs/{run['run_id']}").body.decode()
    assert "success" in page and "/points/" in page


@pytest.mark.timeout(600)
def test_an_instant_recovery_is_started_finalised_and_another_discarded(
    here: InstantLab, client: Client
) -> None:
    """By one call each; sessions are shown with their phase, and gone in the end."""
    wishes = {"point": here.point, "isolate_all": True, "address": here.address, "name": "again"}
    started = ended(client, client.api("POST", "/recoveries", wishes | {"note": "a test"}))
    assert started["outcome"] in GOOD, started
    assert started["result"]["guest"]["heartbeat"] == "beating"
    assert started["result"]["note"] == "a test"
    (session,) = client.api("GET", "/recoveries").document
    assert (session["phase"], session["vm"], session["served"]) == ("running", "again", True)
    name = session["session_id"]
    assert started["result"]["session_id"] == name
    forgotten = client.api("DELETE", f"/points/{here.point}")
    assert forgotten.status == 403  # an operator may not
    assert f"finalise-{name}" in client.call("GET", "/recoveries").body.decode()
    moved = client.api("POST", f"/recoveries/{name}/finalise", {"datastore": "ds2"})
    assert ended(client, moved)["outcome"] in GOOD
    assert here.machine("again").engine.config.vmx_path.datastore == "ds2"
    off = wishes | {"name": "second", "power_on": False}
    second = ended(client, client.api("POST", "/recoveries", off))
    address = f"/recoveries/{second['result']['session_id']}"
    assert client.api("GET", address).document["phase"] == "registered"
    assert ended(client, client.api("POST", f"{address}/discard"))["outcome"] in GOOD
    assert client.api("GET", "/recoveries").document == []
    assert "second" not in here.traces()["vms"]


@pytest.mark.timeout(300)
def test_the_command_line_from_elsewhere_follows_a_recovery_and_a_restore_to_their_end(
    here: InstantLab,
    client: Client,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Started, named, discarded; a VM restored; each with the operation's result and exit code."""
    monkeypatch.setenv("HOLDFAST_APPLIANCE", f"https://{here.address}:{client.port}")
    monkeypatch.setenv("HOLDFAST_TOKEN", client.token)
    monkeypatch.setenv("HOLDFAST_APPLIANCE_FINGERPRINT", fingerprint(here.lab.home))

    def command(*words: str) -> dict[str, Any]:
        assert main([*words, "--json", "--quiet"]) in (0, 3)
        document: dict[str, Any] = json.loads(capsys.readouterr().out)
        assert document["outcome"] in GOOD
        return document

    place = ("--name", "third", "--address", here.address)
    started = command("instant", "start", here.point, "--network", "isolated", *place)
    session = started["result"]["session_id"]
    assert "third" in here.traces()["vms"]
    assert command("instant", "start", "--resume", session)["kind"] == "instant-start"
    assert command("instant", "discard", session)["kind"] == "instant-discard"
    assert "third" not in here.traces()["vms"]
    made = command("restore", "vm", here.point, "--name", "fourth", "--datastore", "ds2")
    assert made["result"]["vm"] == "fourth" and "fourth" in here.traces()["vms"]


def test_the_wizards_offer_what_the_inventory_has(here: InstantLab, client: Client) -> None:
    """Networks, datastores with their room, hosts, folders and pools; each as it can be taken."""
    (places,) = client.api("GET", "/places?wait_s=60").document
    assert places["failure"] is None
    assert {"ds1", "ds2"} <= {store["name"] for store in places["datastores"]}
    assert places["networks"] and places["machines"] and places["pools"]
    vms = client.api("GET", "/vms").document["vms"]
    assert {vm["folder"] for vm in vms} <= set(places["folders"])
    assert {vm["runs_on"] for vm in vms} <= set(places["machines"])
    for way in ("restore", "instant"):
        page = client.call("GET", f"/points/{here.point}/{way}").body.decode()
        for offered in ("ds2", places["networks"][0], places["pools"][0]):
            assert f'<option value="{offered}">' in page


@pytest.mark.timeout(300)
def test_a_restore_makes_a_new_vm_and_a_wrong_wish_says_why(
    here: InstantLab, client: Client
) -> None:
    """The operation fails with the code of the cause, and nothing is left."""
    wish = {"point": here.point, "name": "restored", "datastore": "none"}
    failed = ended(client, client.api("POST", "/restores", wish))
    assert failed["outcome"] == "failed" and "none" in failed["result"]["error"]
    assert failed["result"]["next_step"]
    made = ended(client, client.api("POST", "/restores", wish | {"datastore": "ds2"}))
    assert made["outcome"] in GOOD, made
    assert made["result"]["disks"][0]["written_bytes"] > 0
    assert "restored" in here.traces()["vms"]
    rolled = ended(client, client.api("POST", "/rollbacks", {"point": here.point}))
    assert rolled["error_code"] == "target.no-writer", rolled["result"]  # no appliance in the lab
