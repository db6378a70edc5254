"""What an administrator says when deploying: taken, refused, cached, and turned into files."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.base.errors import ApplianceError
from appliance.machine.errors import OvfEnvironmentError, PropertyError
from appliance.machine.layout import Layout, read_status
from appliance.machine.ovf_environment import MAX_BYTES, parse_environment
from appliance.machine.prepare import apply_settings, settings_of
from appliance.machine.settings import MachineSettings, parse_properties
from appliance.machine.system_files import system_files

_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFb0mVVQ5nqE1Tq9sO5x4nXW1Yk3m8Zr2cXq7o0L9p1d"


def environment(**properties: str) -> bytes:
    lines = "".join(f'<Property oe:key="{k}" oe:value="{v}"/>' for k, v in properties.items())
    return (
        '<?xml version="1.0" encoding="UTF-8"?>'
        '<Environment xmlns="http://schemas.dmtf.org/ovf/environment/1"'
        ' xmlns:oe="http://schemas.dmtf.org/ovf/environment/1"'
        ' xmlns:ve="http://www.vmware.com/schema/ovfenv" ve:esxId="vm-77">'
        f"<PropertySection>{lines}</PropertySection></Environment>"
    ).encode()


class GivenProperties:
    """A hypervisor that passes these, until they are blanked."""

    name = "given"

    def __init__(self, raw: bytes | None) -> None:
        self.raw = raw

    def read(self) -> bytes | None:
        return self.raw

    def blank(self) -> None:
        self.raw = None


def texts(settings: MachineSettings) -> dict[str, str]:
    return {str(file.path): file.text for file in system_files(settings)}


def test_properties_of_an_environment_are_read_with_the_id_of_the_vm() -> None:
    """What vCenter writes."""
    found = parse_environment(environment(hostname="backup.example", unknown="x"))
    assert found.properties == {"hostname": "backup.example", "unknown": "x"}
    assert found.vm_moref == "vm-77"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"no xml",
        b"<Environment/>",
        b'<!DOCTYPE x [<!ENTITY a "aaaa">]>' + environment(hostname="a")[38:],
        '<?xml version="1.0" encoding="UTF-16"?><!DOCTYPE x []><x/>'.encode("utf-16"),
        b"<a>" * 100_000,
        environment(hostname="a" * MAX_BYTES),
    ],
)
def test_an_environment_that_is_none_or_dangerous_is_refused(raw: bytes) -> None:
    """Without expanding anything of it."""
    with pytest.raises(OvfEnvironmentError):
        parse_environment(raw)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hostname", "a b"),
        ("hostname", "a\nb"),
        ("hostname", "-a"),
        ("hostname", "backup." + "a" * 58),  # 65: more than the kernel takes
        ("ipv4_address", "192.0.2.10"),
        ("ipv4_address", "192.0.2.10/33"),
        ("ipv4_address", "2001:db8::1/64"),
        ("ipv6_address", "fe80::1%eth0/64"),
        ("ipv4_gateway", "gateway"),
        ("ipv4_gateway", "192.0.2.1"),  # without a static address
        ("dns", "192.0.2.1,resolver"),
        ("ntp", "pool.example; reboot!"),
        ("time_zone", "../../etc/shadow"),
        ("ssh_key", "ssh-ed25519 AAAA"),
        ("ssh_key", f'command="sh" {_KEY}'),
        ("ssh_key", f"{_KEY}\n{_KEY}"),
        ("admin_email", "not an address"),
        ("nfs_networks", "everybody"),
    ],
)
def test_a_property_that_cannot_be_used_is_refused_by_name(name: str, value: str) -> None:
    """So that nothing of it ends up in a file of the system."""
    with pytest.raises(PropertyError, match=name):
        parse_properties({name: value})


def test_a_machine_without_any_address_is_refused() -> None:
    """It would be reached by nobody."""
    with pytest.raises(PropertyError):
        parse_properties({"ipv4_address": "none", "ipv6_address": "none"})


def test_a_passphrase_never_shows() -> None:
    """Neither in the settings nor in what a log would print of them."""
    found = parse_properties({"repository_passphrase": "open sesame"})
    assert "sesame" not in repr(found) + found.settings.to_json().decode()
    assert found.repository_passphrase is not None
    assert found.repository_passphrase.reveal() == b"open sesame"


def test_a_static_address_with_both_families_becomes_the_network_file() -> None:
    """Nothing is taken from DHCP then."""
    settings = parse_properties(
        {
            "hostname": "backup.example",
            "ipv4_address": "192.0.2.10/24",
            "ipv4_gateway": "192.0.2.1",
            "ipv6_address": "2001:db8::10/64",
            "ipv6_gateway": "2001:db8::1",
            "dns": "192.0.2.53, 2001:db8::53",
            "ntp": "ntp.example 192.0.2.123",
            "ssh_key": _KEY,
        }
    ).settings
    files = texts(settings)
    network = files["/etc/systemd/network/10-holdfast.network"].splitlines()
    for line in (
        "DHCP=no",
        "IPv6AcceptRA=no",
        "Address=192.0.2.10/24",
        "Gateway=192.0.2.1",
        "Address=2001:db8::10/64",
        "Gateway=2001:db8::1",
        "DNS=192.0.2.53",
        "DNS=2001:db8::53",
    ):
        assert line in network
    assert files["/etc/hostname"] == "backup.example\n"
    assert "127.0.1.1 backup.example backup" in files["/etc/hosts"]
    sources = files["/etc/chrony/sources.d/holdfast.sources"]
    assert sources == "server ntp.example iburst\nserver 192.0.2.123 iburst\n"
    assert files["/etc/ssh/authorized_keys/admin"] == f"{_KEY}\n"


def test_without_properties_the_machine_asks_dhcp_and_lets_nobody_in_by_ssh() -> None:
    """The defaults."""
    files = texts(MachineSettings())
    assert "DHCP=yes" in files["/etc/systemd/network/10-holdfast.network"]
    assert files["/etc/ssh/authorized_keys/admin"] == ""


def test_only_what_was_asked_for_passes_the_firewall() -> None:
    """NFS from its networks, and NBD and iSCSI from nowhere."""
    settings = parse_properties(
        {"management_networks": "192.0.2.0/24", "nfs_networks": "198.51.100.0/24,2001:db8::/32"}
    ).settings
    rules = texts(settings)["/etc/holdfast/firewall.nft"]
    assert "policy drop" in rules
    assert "ip saddr { 192.0.2.0/24 } tcp dport { 22, 443 } accept" in rules
    assert "ip saddr { 198.51.100.0/24 } tcp dport { 111, 2049 } accept" in rules
    assert "ip6 saddr { 2001:db8::/32 } tcp dport { 111, 2049 } accept" in rules
    assert "10809" not in rules and "3260" not in rules
    assert "0.0.0.0/0" not in rules


def test_the_first_boot_caches_the_properties_and_blanks_them(tmp_path: Path) -> None:
    """Later boots need no properties, and find no secret in them."""
    layout = Layout(root=tmp_path)
    source = GivenProperties(environment(hostname="one", repository_passphrase="sesame"))
    assert settings_of(layout, source).hostname == "one"
    assert source.raw is None
    assert layout.passphrase.read_text() == "sesame\n"
    assert layout.passphrase.stat().st_mode & 0o007 == 0
    assert b"sesame" not in layout.settings.read_bytes()
    later = GivenProperties(environment(hostname="two", repository_passphrase="sesame"))
    assert settings_of(layout, later).hostname == "one"
    assert later.raw is None


def test_a_bad_property_is_neither_cached_nor_blanked(tmp_path: Path) -> None:
    """A corrected deployment, or the console, still counts."""
    layout = Layout(root=tmp_path)
    source = GivenProperties(environment(hostname="a b"))
    with pytest.raises(PropertyError):
        settings_of(layout, source)
    assert source.raw is not None and not layout.settings.exists()


def test_no_properties_leave_the_machine_to_the_console(tmp_path: Path) -> None:
    """Nothing is cached, so that set-up on the console still counts as the first."""
    layout = Layout(root=tmp_path)
    assert settings_of(layout, GivenProperties(None)) == MachineSettings()
    assert not layout.settings.exists()


def test_the_cache_is_checked_like_properties(tmp_path: Path) -> None:
    """Who edits it by hand cannot get past what is checked."""
    settings = parse_properties({"hostname": "one", "nfs_networks": "10.0.0.0/8"}).settings
    assert MachineSettings.from_json(settings.to_json()) == settings
    for raw in (b"[]", b"{", settings.to_json().replace(b"one", b"a b"), b'{"dns": 5}'):
        with pytest.raises(ApplianceError):
            MachineSettings.from_json(raw)


def test_files_are_written_below_the_root_and_the_zone_must_exist(tmp_path: Path) -> None:
    """Applying settings twice changes nothing."""
    layout = Layout(root=tmp_path)
    (tmp_path / "usr/share/zoneinfo/Europe").mkdir(parents=True)
    (tmp_path / "usr/share/zoneinfo/Europe/Vienna").touch()
    settings = parse_properties({"time_zone": "Europe/Vienna"}).settings
    apply_settings(layout, settings)
    apply_settings(layout, settings)
    assert (tmp_path / "etc/localtime").readlink() == Path("/usr/share/zoneinfo/Europe/Vienna")
    assert (tmp_path / "etc/hostname").read_text() == "holdfast\n"
    with pytest.raises(PropertyError, match="time_zone"):
        apply_settings(layout, parse_properties({"time_zone": "Mars/Base"}).settings)


def test_a_status_that_was_not_written_yet_is_none(tmp_path: Path) -> None:
    """The console shows that the machine is starting."""
    assert read_status(Layout(root=tmp_path).status) is None
