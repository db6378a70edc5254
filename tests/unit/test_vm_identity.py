"""Which points belong to which VM, and the names they are kept under."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.base.ids import RecoveryPointId
from appliance.sources.vm_identity import (
    NAME_LIMIT_CHARS,
    KnownPoint,
    PointNames,
    VmIdentity,
    identity_of,
    point_name,
)


def vm(number: int, server: str = "vc1") -> VmIdentity:
    return VmIdentity(server_id=server, moref=f"vm-{number}", instance_uuid=f"uuid-{number}")


def points(*kept: tuple[str, VmIdentity | None]) -> list[KnownPoint]:
    """Points, oldest first."""
    begin = datetime(2026, 11, 1, tzinfo=UTC)
    return [
        KnownPoint(
            point_id=RecoveryPointId(f"p{number:04}"),
            name=name,
            created_at=begin + timedelta(days=number),
            vm_key=identity.key if identity else None,
        )
        for number, (name, identity) in enumerate(kept)
    ]


def test_a_vm_that_is_alone_with_its_name_keeps_it() -> None:
    """The plain name, on the first backup and on the next."""
    assert point_name(vm(1), "web", "a", []) == "web"
    assert point_name(vm(1), "web", "a", points(("web", vm(1)))) == "web"


def test_a_renamed_vm_goes_on_under_the_name_it_began_with() -> None:
    """One chain and one retention; its newest point is found by identity."""
    kept = points(("web", vm(1)), ("db", vm(2)))
    names = PointNames(kept)
    assert names.name_for(vm(1), "web-new", "a") == "web"
    assert names.newest_of(vm(1)) == kept[0]


def test_a_vm_that_was_registered_anew_is_the_same_vm() -> None:
    """Its moref changed, its instance uuid did not."""
    again = VmIdentity(server_id="vc1", moref="vm-99", instance_uuid="uuid-1")
    assert point_name(again, "x", "a", points(("web", vm(1)))) == "web"


def test_a_new_vm_under_an_old_name_does_not_continue_a_strangers_chain() -> None:
    """Rebuilt, or taking over the name of a renamed one."""
    kept = points(("web", vm(1)))
    names = PointNames(kept)
    assert names.newest_of(vm(2)) is None
    assert names.name_for(vm(2), "web", "a") == "web@a"
    assert names.name_for(vm(1), "web-old", "a") == "web"


def test_vms_of_one_name_on_two_hosts_and_in_two_folders_are_told_apart() -> None:
    """Also copies that share an instance uuid; asking again gives the same names."""
    names = PointNames([])
    asked = [(vm(1), "a"), (vm(1, "vc2"), "b"), (vm(2), "a"), (vm(3), "a"), (vm(4), "a")]
    first = [names.name_for(one, "web", host) for one, host in asked]
    assert first == ["web", "web@b", "web@a", "web@a#uuid-3", "web@a#uuid-4"]
    assert [names.name_for(one, "web", host) for one, host in asked] == first


def test_names_that_look_like_ours_are_only_names() -> None:
    """Whoever may name VMs cannot take the place of another one."""
    taken = points(*[(name, None) for name in ("web", "web@a", "web@a#uuid-1", "web@a#2")])
    assert point_name(vm(1), "web", "a", taken) == "web@a#3"


def test_points_of_disk_images_are_no_vms() -> None:
    """A VM does not continue what `backup image` has made under its name."""
    assert point_name(vm(1), "web", "a", points(("web", None))) == "web@a"


def test_a_name_that_two_vms_got_in_a_race_becomes_one_vms_again() -> None:
    """The newer point keeps it; each goes on with its own newest point as parent."""
    kept = points(("web", vm(1)), ("web", vm(2)))
    names = PointNames(kept)
    assert [names.name_for(vm(n), "web", "a") for n in (1, 2)] == ["web@a", "web"]
    assert [names.newest_of(vm(n)) for n in (1, 2)] == kept
    healed = [*kept, *points(*[("x", None)] * 2, ("web@a", vm(1)), ("web", vm(2)))[2:]]
    names = PointNames(healed)
    assert [names.name_for(vm(n), "web", "a") for n in (1, 2)] == ["web@a", "web"]


@given(st.lists(st.tuples(st.sampled_from(["a", "b", "a@h"]), st.integers(0, 4)), max_size=12))
def test_two_vms_never_get_one_name_whatever_was_kept_before(
    kept: Sequence[tuple[str, int]],
) -> None:
    """And backing up all of them once settles every name for good."""
    earlier = points(*[(name, vm(number)) for name, number in kept])
    names = PointNames(earlier)
    given_names = [names.name_for(vm(number), "a", "h") for number in range(5)]
    assert len(set(given_names)) == 5
    count = len(earlier)
    later = [
        *earlier,
        *points(*[("", None)] * count, *zip(given_names, map(vm, range(5)), strict=True))[count:],
    ]
    assert [point_name(vm(n), "renamed", "h", later) for n in range(5)] == given_names


def test_a_name_is_never_longer_than_a_manifest_takes() -> None:
    """The part that tells VMs apart stays whole."""
    names = PointNames([])
    long = "w" * 300
    given_names = [names.name_for(vm(number), long, "h" * 60) for number in range(4)]
    assert max(map(len, given_names)) == NAME_LIMIT_CHARS
    assert len(set(given_names)) == 4


def test_an_identity_survives_the_hardware_document() -> None:
    """Also without an instance uuid."""
    lone = VmIdentity(server_id="esxi", moref="7", instance_uuid=None)
    for identity in (vm(1), lone):
        assert identity_of({"identity": identity.as_json(), "other": 1}) == identity
    assert lone.key == "esxi/7"


@pytest.mark.parametrize(
    "hardware",
    [
        {},
        {"identity": None},
        {"identity": "x"},
        {"identity": {"server_id": "a"}},
        {"identity": {"server_id": "a", "moref": 7, "instance_uuid": None}},
        {"identity": {"server_id": "a" * 300, "moref": "b", "instance_uuid": None}},
    ],
)
def test_a_hardware_document_without_an_identity_has_none(hardware: dict[str, object]) -> None:
    """It comes from storage and may be of an older program."""
    assert identity_of(hardware) is None
