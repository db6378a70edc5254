"""How the nodes of a Hyper-V cluster are given, kept and asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from appliance.base.errors import UsageError
from appliance.cli.host_commands import parse_node
from appliance.sources.hyperv_errors import HypervNodeError, HypervUnreachableError
from appliance.sources.hyperv_host import HypervHost, HypervLogin
from appliance.sources.hyperv_node import NodeAddress
from appliance.sources.hyperv_nodes import HypervNodes
from hyperv.errors import HypervError, UnreachableError
from tests.support.fake_hyperv_session import FakeHypervSession

LOGIN = HypervLogin(
    name="clu1",
    address="hv1",
    port=5986,
    user="backup",
    fingerprint="AA",
    nodes=(NodeAddress(address="hv2", port=5987, smb_port=446, fingerprint="BB"),),
)


def test_a_registration_begins_with_any_of_its_nodes_and_is_kept_as_text() -> None:
    """Each with its own address, ports and certificate; the settings give the same back."""
    first, second = LOGIN.each_first
    assert first == LOGIN
    assert (second.address, second.port, second.smb_port, second.fingerprint) == (
        "hv2",
        5987,
        446,
        "BB",
    )
    assert [node.address for node in second.nodes] == ["hv1"]
    [other] = LOGIN.others
    assert (other.address, other.nodes) == ("hv2", ())
    again = HypervLogin.from_settings(
        LOGIN.settings, name="clu1", address="hv1", port=5986, user="backup", fingerprint="AA"
    )
    assert again == LOGIN


@pytest.mark.parametrize("nodes", ["{", "{}", "[1]", '[{"address": "hv2"}]', "[" + "{}," * 99])
def test_nodes_that_are_not_ours_are_a_usage_error(nodes: str) -> None:
    with pytest.raises(UsageError):
        HypervLogin.from_settings(
            {"nodes": nodes}, name="a", address="b", port=1, user="c", fingerprint=""
        )


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("hv2", ("hv2", 5986, 445)),
        ("hv2.example:1", ("hv2.example", 1, 445)),
        ("10.0.0.2:1:2", ("10.0.0.2", 1, 2)),
        ("[fe80::1]:1:2", ("fe80::1", 1, 2)),
        ("fe80::1:2:3", ("fe80::1:2:3", 5986, 445)),
        ("hv2:x", None),
        ("hv2:1:x", None),
        ("hv2:0", None),
        ("hv2:1:70000", None),
        (":1", None),
        ("h v", None),
    ],
)
def test_a_node_is_given_as_address_and_ports(
    text: str, found: tuple[str, int, int] | None
) -> None:
    if found is None:
        with pytest.raises(UsageError):
            parse_node(text, 5986, 445)
        return
    node = parse_node(text, 5986, 445)
    assert (node.address, node.port, node.smb_port) == found


# What they say


@dataclass
class Facts:
    computer_name: str
    cluster: str = "CLU1"
    admin_shares: bool = True


@dataclass
class Node:
    """What of a `HypervHost` is asked here."""

    session: FakeHypervSession
    facts: Facts
    others: tuple[Callable[[], Any], ...] = ()
    name: str = "clu1"
    smb: str = ""
    closed: int = 0

    def close(self) -> None:
        self.closed += 1


@dataclass
class Two:
    """Two nodes; `owners` by VM, `lost`: nodes that do not answer."""

    owners: dict[str, str] = field(default_factory=dict)
    lost: set[str] = field(default_factory=set)
    coordinator: str = "HV1"
    logins: int = 0
    now_s: float = 0.0

    def node(self, computer: str) -> Node:
        def list_cluster(_given: Any) -> Any:
            if computer in self.lost:
                return UnreachableError(computer)
            return {
                "name": "CLU1",
                "nodes": [{"name": name, "state": 0} for name in ("HV1", "HV2")],
                "vms": [
                    {"vm_id": vm, "name": f"{vm}-role", "owner": owner}
                    for vm, owner in self.owners.items()
                ],
                "volumes": [
                    {
                        "name": "Disk 1",
                        "owner": self.coordinator,
                        "path": "C:\\ClusterStorage\\Volume1",
                        "redirected": False,
                    }
                ],
            }

        def list_vms(_given: Any) -> dict[str, Any] | HypervError:
            return UnreachableError(computer) if computer in self.lost else {"vms": []}

        session = FakeHypervSession({"list_cluster": list_cluster, "list_vms": list_vms})
        return Node(session, Facts(computer), smb=f"smb of {computer}")

    def nodes(self) -> HypervNodes:
        def log_in() -> Any:
            self.logins += 1
            if "HV2" in self.lost:
                raise HypervUnreachableError("HV2", retryable=True)
            return self.node("HV2")

        first = self.node("HV1")
        first.others = (log_in,)
        return HypervNodes(cast(HypervHost, first), clock_s=lambda: self.now_s)


def test_the_owner_is_asked_for_each_time_and_logged_in_to_once() -> None:
    """A VM that is no role of the cluster stays where it was seen."""
    two = Two(owners={"a": "HV1"})
    nodes = two.nodes()
    assert nodes.owner("a", "HV2").facts.computer_name == "HV1"
    two.owners["a"] = "hv2"
    assert nodes.owner("a", "HV1").facts.computer_name == "HV2"
    assert nodes.owner("local", "HV2").facts.computer_name == "HV2"
    assert two.logins == 1
    with pytest.raises(HypervNodeError, match=r"HV3.*not registered"):
        nodes.owner("local", "HV3")


def test_a_node_that_does_not_answer_is_not_tried_again_within_a_minute() -> None:
    """Else every VM would wait for it; after that, it may be back."""
    two = Two(owners={"a": "HV2"}, lost={"HV2"})
    nodes = two.nodes()
    for _ in range(3):
        with pytest.raises(HypervNodeError) as raised:
            nodes.owner("a", "HV1")
        assert raised.value.retryable
    assert two.logins == 1
    survey = nodes.survey()
    assert [(each.vm.name, each.reason.code) for each in survey.unseen] == [
        ("a-role", "vm.node-not-asked")
    ]
    two.lost.clear()
    two.now_s = 61.0
    assert nodes.owner("a", "HV1").facts.computer_name == "HV2"


def test_another_node_speaks_for_the_cluster_when_the_first_does_not_answer() -> None:
    two = Two(owners={"a": "HV2"})
    nodes = two.nodes()
    two.lost.add("HV1")
    assert nodes.owner("a", "HV1").facts.computer_name == "HV2"
    two.lost.add("HV2")
    with pytest.raises(HypervUnreachableError):
        nodes.owner("a", "HV1")


@pytest.mark.parametrize(
    ("paths", "coordinator", "through"),
    [
        (["C:\\ClusterStorage\\Volume1\\a.vhdx"], "HV2", "smb of HV2"),
        (["c:\\clusterstorage\\VOLUME1\\a.vhdx"], "HV2", "smb of HV2"),
        (["C:\\ClusterStorage\\Volume1\\a.vhdx"], "HV3", "smb of HV1"),
        (["C:\\ClusterStorage\\Volume10\\a.vhdx"], "HV2", "smb of HV1"),
        (["C:\\ClusterStorage\\Volume1\\a.avhdx", "D:\\a.vhdx"], "HV2", "smb of HV1"),
    ],
)
def test_files_are_read_through_the_coordinator_or_the_owner(
    paths: list[str], coordinator: str, through: str
) -> None:
    """A file that is not on the shared volume is its owner's alone."""
    nodes = Two(coordinator=coordinator).nodes()
    assert nodes.smb_login(paths, nodes.first) == through
