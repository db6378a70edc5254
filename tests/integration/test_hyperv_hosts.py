"""Hyper-V hosts at the API and the command line, with a host whose answers the test chooses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.base.secret import Secret
from appliance.catalog.accounts import Role
from tests.support import holdfast_program
from tests.support.api_server import Client, api_serving
from tests.support.scripted_host import PASSWORD, USER, ScriptedHost, scripted_host

ADMIN_PASSWORD = "correct horse battery"
FACTS = {
    "computer_name": "HV1",
    "fqdn": "HV1.lab.example",
    "domain": "lab.example",
    "domain_joined": True,
    "os_version": "10.0.20348",
    "os_caption": "Windows Server 2022",
    "server": True,
    "powershell_version": "5.1",
    "user": "LAB\\backup",
    "administrator": True,
    "hyperv": True,
    "reference_points": True,
    "diskshadow": True,
    "vm_versions": ["10.0"],
    "vm_folder": "D:\\VM",
    "disk_folder": "D:\\VM",
    "cluster": "CLU1",
    "iscsi_service": "running",
    "processors": 8,
    "memory_bytes": 1 << 36,
    "admin_shares": True,
}
DISK = {
    "path": "D:\\VM\\web.vhdx",
    "format": "vhdx",
    "type": "dynamic",
    "virtual_disk_id": "d0000000-0000-0000-0000-000000000001",
    "size_bytes": 1 << 30,
    "file_size_bytes": 1 << 20,
    "logical_sector_bytes": 512,
    "physical_sector_bytes": 4096,
    "parent_path": "",
    "error": "",
    "attachment": "Microsoft:A\\B\\0\\0\\D",
    "controller": "scsi",
    "controller_number": 0,
    "location": 0,
    "pass_through": False,
    "shared": False,
}


def vm(name: str, number: int, **more: Any) -> dict[str, Any]:
    return {
        "id": f"00000000-0000-0000-0000-{number:012}",
        "name": name,
        "state": 2,
        "generation": 2,
        "version": "10.0",
        "clustered": True,
        "operational_status": [2],
        "processors": 2,
        "memory_bytes": 1 << 30,
        "folder": "D:\\VM",
        "checkpoint_type": 3,
        "parent_checkpoint": "",
        "replication_mode": 0,
        "tpm": False,
        "shielded": False,
        "vss_status": 2,
        "fibre_channel": 0,
        "notes": "",
        "disks": [DISK],
    } | more


VMS = [
    vm("web", 1),
    vm("replica", 2, replication_mode=2),
    vm("critical", 3, state=32783),
    vm("bare", 4, disks=[]),
    vm("physical", 5, disks=[DISK | {"pass_through": True, "path": "", "format": ""}]),
    vm("guest cluster", 6, disks=[DISK, DISK | {"shared": True, "location": 1}]),
    vm("old", 7, version="5.0", vss_status=12),
    vm("filer", 8, disks=[DISK | {"path": "\\\\filer\\vm\\a.vhdx"}]),
]


@pytest.fixture
def host(tmp_path: Path) -> Iterator[ScriptedHost]:
    (tmp_path / "host").mkdir()
    handlers = {
        "host_facts": lambda _p: FACTS,
        "list_vms": lambda _p: {"vms": VMS},
        "list_switches": lambda _p: {
            "switches": [
                {"id": str(number), "name": name, "type": "external"}
                for number, name in enumerate(("Storage", "LAN", "holdfast-isolated"))
            ]
        },
        "list_cluster": lambda _p: {
            "name": "CLU1",
            "nodes": [{"name": "HV1", "state": 0}, {"name": "HV2", "state": 1}],
            "vms": [],
            "volumes": [],
        },
    }
    with scripted_host(tmp_path / "host", handlers) as started:
        yield started


def test_a_hyperv_host_is_registered_tested_and_listed_over_the_api(
    tmp_path: Path, host: ScriptedHost
) -> None:
    """With its own login; every VM that cannot be protected says why; switches are offered."""
    assert host.server is not None
    home = tmp_path / "home"
    home.mkdir()
    with api_serving(home) as (services, port):
        services.catalog.accounts.create(
            "admin", Secret.of_text(ADMIN_PASSWORD), Role.ADMINISTRATOR
        )
        client = Client(port)
        assert client.log_in("admin", ADMIN_PASSWORD).status == 204
        body = {
            "name": "hv1",
            "kind": "hyperv",
            "address": "127.0.0.1",
            "port": host.server.https_port,
            "user": USER,
            "password": PASSWORD,
            "fingerprint": host.server.fingerprint,
        }
        wrong = client.api("POST", "/hosts", body | {"fingerprint": "AB" * 32})
        assert wrong.document["code"] == "hyperv.certificate"
        added = client.api("POST", "/hosts", body)
        assert (added.status, added.document["kind"]) == (200, "hyperv"), added.body
        tested = client.api("POST", "/hosts/hv1/test").document
        assert tested["product"] == "Hyper-V on Windows Server 2022" and tested["lacking"] == []
        shown = {each["name"]: each for each in client.api("GET", "/vms").document["vms"]}
        (places,) = client.api("GET", "/places?wait_s=60").document
        assert (places["networks"], places["datastores"]) == (["LAN", "Storage"], [])
    codes = {name: [reason["code"] for reason in each["obstacles"]] for name, each in shown.items()}
    assert codes == {
        "web": [],
        "replica": ["vm.replica"],
        "critical": ["vm.critical"],
        "bare": ["vm.no-disks"],
        "physical": ["vm.no-coverable-disks"],
        "guest cluster": [],
        "old": ["vm.would-be-paused"],
        "filer": ["vm.no-coverable-disks"],
    }
    [first, second] = shown["guest cluster"]["disks"]
    assert first["obstacle"] is None and second["obstacle"]["code"] == "disk.shared"
    assert shown["old"]["change_tracking"] == "unsupported"


def test_the_nodes_of_a_cluster_are_one_host(tmp_path: Path, host: ScriptedHost) -> None:
    """Over the API: each with its own certificate; VMs of all nodes, one that moves meanwhile too,
    and one whose node is not registered."""
    moving = vm("moving", 9)
    roles = [
        {"vm_id": each["id"], "name": each["name"], "owner": owner}
        for each, owner in (
            (VMS[0], "HV1"),
            (moving, "HV1"),
            (vm("far", 10), "HV3"),
        )
    ]
    cluster = {
        "name": "CLU1",
        "nodes": [{"name": name, "state": 0} for name in ("HV1", "HV2", "HV3")],
        "vms": roles,
        "volumes": [],
    }
    host.handlers["list_cluster"] = lambda _p: cluster
    # It comes when both nodes have been asked for all that they have.
    host.handlers["list_vms"] = lambda p: {"vms": [moving] if p["vm_id"] else [VMS[0]]}
    second_handlers = {
        "host_facts": lambda _p: FACTS | {"computer_name": "HV2", "fqdn": "hv2"},
        "list_vms": lambda _p: {"vms": [vm("local", 11, clustered=False)]},
    }
    (tmp_path / "second").mkdir()
    home = tmp_path / "home"
    home.mkdir()
    with (
        scripted_host(tmp_path / "second", second_handlers) as second,
        api_serving(home) as (services, port),
    ):
        assert host.server is not None and second.server is not None
        services.catalog.accounts.create(
            "admin", Secret.of_text(ADMIN_PASSWORD), Role.ADMINISTRATOR
        )
        client = Client(port)
        assert client.log_in("admin", ADMIN_PASSWORD).status == 204
        node = {
            "address": "127.0.0.1",
            "port": second.server.https_port,
            "fingerprint": second.server.fingerprint,
        }
        body = {
            "name": "clu1",
            "kind": "hyperv",
            "address": "127.0.0.1",
            "port": host.server.https_port,
            "user": USER,
            "password": PASSWORD,
            "fingerprint": host.server.fingerprint,
        }
        wrong = client.api(
            "POST", "/hosts", body | {"nodes": [node | {"fingerprint": host.server.fingerprint}]}
        )
        assert wrong.document["code"] == "hyperv.certificate"
        added = client.api("POST", "/hosts", body | {"nodes": [node]})
        assert added.status == 200, added.body
        tested = client.api("POST", "/hosts/clu1/test").document
        assert list(tested["missing_nodes"]) == ["HV3"]
        shown = {each["name"]: each for each in client.api("GET", "/vms").document["vms"]}
    assert {name: each["runs_on"] for name, each in shown.items()} == {
        "web": "HV1",
        "moving": "HV1",
        "local": "HV2",
        "far": "HV3",
    }
    assert [reason["code"] for reason in shown["far"]["obstacles"]] == ["vm.node-not-asked"]
    assert shown["moving"]["obstacles"] == []


def test_the_command_line_names_the_other_nodes_of_a_cluster(
    tmp_path: Path, host: ScriptedHost
) -> None:
    """And says what an account lacks, with exit code 1."""
    assert host.server is not None
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    secret = tmp_path / "password"
    secret.touch(mode=0o600)
    secret.write_text(PASSWORD)
    words = (
        *("host", "add", "hv1", "--type", "hyperv", "--scheme", "http"),
        *("--address", f"127.0.0.1:{host.server.http_port}", "--user", USER),
        *("--password-file", str(secret)),
    )
    added = holdfast_program.run_json(home, *words)
    assert (added["type"], added["fingerprint_sha256"]) == ("hyperv", "")
    tested = holdfast_program.run_json(home, "host", "test", "hv1", expect=3)
    assert tested["cluster_nodes"] == ["HV1", "HV2"] and tested["missing_privileges"] == []
    assert list(tested["missing_nodes"]) == ["HV2"]
    host.handlers["host_facts"] = lambda _p: FACTS | {"administrator": False, "cluster": ""}
    found = holdfast_program.run(home, "host", "test", "hv1", "--json", expect=1)
    document = json.loads(found.stdout)
    assert document["missing_privileges"][0]["privileges"] == ["member of the local Administrators"]
    assert document["cluster_nodes"] == []
