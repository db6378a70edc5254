"""Sealed passwords: what opens them, and that nothing else does."""

from __future__ import annotations

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.base.errors import ApplianceError, UsageError
from appliance.base.secret import Secret
from appliance.catalog.catalog import Catalog
from appliance.catalog.errors import (
    CatalogDamagedError,
    HostExistsError,
    HostNotFoundError,
    SecretDamagedError,
    SecretsKeyLostError,
)
from appliance.catalog.hosts import HostKind, HostRecord
from appliance.catalog.sealing import SecretSealer

PASSWORD = Secret.of_text("correct horse")
OWNER = ("host a", "password")


def host(name: str = "a", **changes: object) -> HostRecord:
    record = HostRecord(
        name=name,
        kind=HostKind.VSPHERE,
        address="vc.example",
        port=443,
        user="backup@vsphere.local",
        fingerprint="AA:BB",
        server_id=f"uuid-of-{name}",
        added_at=datetime(2026, 11, 21, tzinfo=UTC),
    )
    return replace(record, **changes)  # type: ignore[arg-type]


def test_a_secret_opens_for_what_it_was_sealed_for_and_nothing_else(tmp_path: Path) -> None:
    """A ciphertext that was moved to another host or field is refused."""
    sealer = SecretSealer(tmp_path / "key")
    sealed = sealer.seal(PASSWORD, OWNER)
    assert sealer.unseal(sealed, OWNER) == PASSWORD
    for other in (("host b", "password"), ("host a", "token"), ("host apassword",), ("host a",)):
        with pytest.raises(SecretDamagedError):
            sealer.unseal(sealed, other)


@given(st.data())
def test_a_changed_secret_never_opens(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Whichever bit was flipped or byte cut off: a typed error."""
    sealer = SecretSealer(tmp_path_factory.getbasetemp() / "key-of-flips")
    sealed = bytearray(sealer.seal(PASSWORD, OWNER))
    if data.draw(st.booleans()):
        del sealed[data.draw(st.integers(0, len(sealed) - 1)) :]
    else:
        bit = data.draw(st.integers(0, len(sealed) * 8 - 1))
        sealed[bit // 8] ^= 1 << bit % 8
    with pytest.raises((SecretDamagedError, SecretsKeyLostError)):
        sealer.unseal(bytes(sealed), OWNER)


def test_the_same_password_is_never_sealed_alike_and_is_not_in_the_file(tmp_path: Path) -> None:
    """Nonces are random; the catalog's file holds no clear text."""
    with Catalog.open(tmp_path) as catalog:
        catalog.hosts.add(host("a"), PASSWORD)
        catalog.hosts.add(host("b"), PASSWORD)
    with sqlite3.connect(tmp_path / "catalog.sqlite") as connection:
        one, two = (row[0] for row in connection.execute("SELECT sealed_password FROM hosts"))
    connection.close()
    assert one[9:] != two[9:]
    assert all(PASSWORD.reveal() not in path.read_bytes() for path in tmp_path.glob("catalog*"))


def test_a_lost_key_is_told_from_damage(tmp_path: Path) -> None:
    """Missing, or made anew meanwhile: the operator is told to put the right one back."""
    path = tmp_path / "key"
    sealed = SecretSealer(path).seal(PASSWORD, OWNER)
    path.rename(tmp_path / "kept")
    with pytest.raises(SecretsKeyLostError, match="missing"):
        SecretSealer(path).unseal(sealed, OWNER)
    SecretSealer(path).seal(PASSWORD, OWNER)
    with pytest.raises(SecretsKeyLostError, match="not the key of host a"):
        SecretSealer(path).unseal(sealed, OWNER)
    (tmp_path / "kept").replace(path)
    assert SecretSealer(path).unseal(sealed, OWNER) == PASSWORD


def test_a_key_file_that_is_cut_short_or_open_to_others_is_refused(tmp_path: Path) -> None:
    """It is never made anew over one that exists."""
    path = tmp_path / "key"
    SecretSealer(path).seal(PASSWORD, OWNER)
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o640)
    with pytest.raises(CatalogDamagedError, match="chmod"):
        SecretSealer(path).seal(PASSWORD, OWNER)
    path.chmod(0o600)
    path.write_bytes(b"short")
    with pytest.raises(CatalogDamagedError, match="32 bytes"):
        SecretSealer(path).seal(PASSWORD, OWNER)
    assert path.read_bytes() == b"short"


def test_whoever_seals_first_at_once_all_use_one_key(tmp_path: Path) -> None:
    """The key file is made once, whole; no temporary file stays."""
    path = tmp_path / "key"
    with ThreadPoolExecutor(8) as pool:
        sealed = list(pool.map(lambda _: SecretSealer(path).seal(PASSWORD, OWNER), range(32)))
    assert all(SecretSealer(path).unseal(one, OWNER) == PASSWORD for one in sealed)
    assert [entry.name for entry in tmp_path.iterdir()] == ["key"]


def test_a_password_does_not_follow_a_host_to_another_address(tmp_path: Path) -> None:
    """Who changes the catalog without the key cannot have the password sent elsewhere."""
    with Catalog.open(tmp_path) as catalog:
        catalog.hosts.add(host(), PASSWORD)
        assert catalog.hosts.password(catalog.hosts.get("a")) == PASSWORD
    for column, value in (("address", "evil.example"), ("fingerprint", "CC"), ("port", 8443)):
        with sqlite3.connect(tmp_path / "catalog.sqlite") as connection:
            (before,) = connection.execute(f"SELECT {column} FROM hosts").fetchone()
            connection.execute(f"UPDATE hosts SET {column} = ?", (value,))
        with Catalog.open(tmp_path) as catalog, pytest.raises(SecretDamagedError):
            catalog.hosts.password(catalog.hosts.get("a"))
        with connection:
            connection.execute(f"UPDATE hosts SET {column} = ?", (before,))
        connection.close()
    with Catalog.open(tmp_path) as catalog:
        assert catalog.hosts.password(catalog.hosts.get("a")) == PASSWORD


def test_hosts_are_added_listed_and_removed(tmp_path: Path) -> None:
    """In the order in which they were added; a removed one leaves no password behind."""
    with Catalog.open(tmp_path) as catalog:
        later = host("a", added_at=datetime(2026, 11, 22, tzinfo=UTC), settings={"k": "v"})
        catalog.hosts.add(later, PASSWORD)
        catalog.hosts.add(host("b"), PASSWORD)
        assert catalog.hosts.list() == [host("b"), later]
        catalog.hosts.remove("a")
        assert catalog.hosts.list() == [host("b")]
        for refused in (lambda: catalog.hosts.get("a"), lambda: catalog.hosts.remove("a")):
            with pytest.raises(HostNotFoundError):
                refused()
        with pytest.raises(HostNotFoundError):
            catalog.hosts.password(later)


def test_a_name_or_a_server_is_registered_once(tmp_path: Path) -> None:
    """Two names for one vCenter would back up its VMs twice."""
    with Catalog.open(tmp_path) as catalog:
        catalog.hosts.add(host("a"), PASSWORD)
        with pytest.raises(HostExistsError, match=r"registered already$"):
            catalog.hosts.add(host("a", server_id="other"), PASSWORD)
        with pytest.raises(
            HostExistsError, match=r"'a' is registered already, and vc.example is the same server"
        ):
            catalog.hosts.add(host("b", server_id="uuid-of-a"), PASSWORD)


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "../x"},
        {"name": ""},
        {"name": "a/b"},
        {"address": "a b"},
        {"address": "http://x"},
        {"port": 0},
        {"user": ""},
        {"user": "a\nb"},
        {"server_id": ""},
    ],
)
def test_what_cannot_be_a_host_is_a_usage_error(wrong: dict[str, object]) -> None:
    """Before anything is stored or connected to."""
    with pytest.raises(UsageError):
        host(**wrong) if "name" not in wrong else host(str(wrong["name"]))


def test_the_appliance_id_stays_and_a_damaged_one_is_not_replaced(tmp_path: Path) -> None:
    """A new id would turn everything we made into somebody else's."""
    with Catalog.open(tmp_path) as catalog:
        first = catalog.appliance_id
    with Catalog.open(tmp_path) as catalog:
        assert catalog.appliance_id == first
    (tmp_path / "appliance-id").write_text("something else\n")
    with pytest.raises(CatalogDamagedError, match="appliance-id"):
        Catalog.open(tmp_path)
    assert issubclass(CatalogDamagedError, ApplianceError)
