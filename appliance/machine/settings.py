"""What an administrator says about the appliance when deploying it, checked once.

Comes from deployment properties (OVF), the console or the cache; goes to `system_files`. A value is
used as it is in files of the system, so whatever passes here holds no line end and nothing else
that such a file would take for something different. An empty property is one that was not given.
Thread model: pure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv6Address,
    IPv6Interface,
    ip_address,
    ip_network,
)

from appliance.base.secret import Secret
from appliance.machine.errors import PropertyError

_LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOST_NAME = re.compile(rf"{_LABEL}(\.{_LABEL})*")
_TIME_ZONE = re.compile(r"[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+){0,2}")
_EMAIL = re.compile(r"[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9.-]{1,190}")
_SSH_KEY = re.compile(
    r"(ssh-ed25519|ssh-rsa|ecdsa-sha2-nistp(256|384|521)|sk-ssh-ed25519@openssh\.com"
    r"|sk-ecdsa-sha2-nistp256@openssh\.com) [A-Za-z0-9+/]{40,2000}={0,2}( [\w.@:+-]{1,100})?"
)
_PASSPHRASE_CHARS = 1024
_OWN_NAME_CHARS = 64  # sethostname(2) takes no more
_LIST_MAX = 32

DHCP, AUTOMATIC, NONE = "dhcp", "auto", "none"
SECRET_PROPERTIES = frozenset({"repository_passphrase"})


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineSettings:
    """Addresses with their prefix length; networks as CIDR. Never holds a secret."""

    hostname: str = "holdfast"
    ipv4_address: str = DHCP
    """`dhcp`, `none`, or like "192.0.2.10/24"."""
    ipv4_gateway: str = ""
    ipv6_address: str = AUTOMATIC
    """`auto` (router advertisements and DHCPv6), `none`, or like "2001:db8::10/64"."""
    ipv6_gateway: str = ""
    dns: tuple[str, ...] = ()
    search_domain: str = ""
    ntp: tuple[str, ...] = ()
    admin_email: str = ""
    ssh_key: str = ""
    time_zone: str = "Etc/UTC"
    management_networks: tuple[str, ...] = ("0.0.0.0/0", "::/0")
    nfs_networks: tuple[str, ...] = ()
    nbd_networks: tuple[str, ...] = ()
    iscsi_networks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.ipv4_gateway and self.ipv4_address in (DHCP, NONE):
            raise PropertyError("ipv4_gateway needs a static ipv4_address")
        if self.ipv6_gateway and self.ipv6_address in (AUTOMATIC, NONE):
            raise PropertyError("ipv6_gateway needs a static ipv6_address")
        if self.ipv4_address == NONE and self.ipv6_address == NONE:
            raise PropertyError("ipv4_address and ipv6_address are both none")

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), indent=1, sort_keys=True).encode() + b"\n"

    @classmethod
    def from_json(cls, raw: bytes) -> MachineSettings:
        """Checks again: the cache may have been edited by hand. Raises PropertyError."""
        try:
            document = json.loads(raw)
            values = {
                name: ",".join(value) if isinstance(value, list) else str(value)
                for name, value in document.items()
            }
        except (ValueError, AttributeError, TypeError) as error:
            raise PropertyError(f"the cached settings are no JSON object: {error}") from None
        return parse_properties(values).settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    settings: MachineSettings
    repository_passphrase: Secret | None = field(default=None, repr=False)


def parse_properties(properties: Mapping[str, str]) -> Deployment:
    """Names that are not ours are ignored: vCenter may add its own.

    Raises PropertyError, which names the property and never shows a secret.
    """
    given = {name: value.strip() for name, value in properties.items() if value.strip()}
    values: dict[str, str | tuple[str, ...]] = {}
    for name, check in _CHECKS.items():
        if name in given:
            values[name] = check(name, given[name])
    passphrase = given.get("repository_passphrase", "")
    if len(passphrase) > _PASSPHRASE_CHARS or not passphrase.isprintable():
        raise PropertyError("repository_passphrase is too long or has characters of no keyboard")
    return Deployment(
        settings=MachineSettings(**values),  # type: ignore[arg-type]  # by name; each was checked above
        repository_passphrase=Secret.of_text(passphrase) if passphrase else None,
    )


def _matching(pattern: re.Pattern[str], limit: int) -> Callable[[str, str], str]:
    def check(name: str, text: str) -> str:
        if len(text) > limit or not pattern.fullmatch(text):
            raise PropertyError(f"{name} {text[:80]!r} is not what it should be")
        return text

    return check


def _ipv4_address(name: str, text: str) -> str:
    return text.lower() if text.lower() in (DHCP, NONE) else _interface(name, text, IPv4Interface)


def _ipv6_address(name: str, text: str) -> str:
    if text.lower() in (AUTOMATIC, NONE):
        return text.lower()
    return _interface(name, text, IPv6Interface)


def _interface(name: str, text: str, kind: type[IPv4Interface] | type[IPv6Interface]) -> str:
    try:
        if "/" not in text or "%" in text:
            raise ValueError("a prefix length is needed, as in /24")
        return kind(text).with_prefixlen
    except ValueError as error:
        raise PropertyError(f"{name} {text[:80]!r}: {error}") from None


def _gateway(kind: type[IPv4Address] | type[IPv6Address]) -> Callable[[str, str], str]:
    def check(name: str, text: str) -> str:
        try:
            if "%" in text:
                raise ValueError("a zone is not allowed")
            return str(kind(text))
        except ValueError as error:
            raise PropertyError(f"{name} {text[:80]!r}: {error}") from None

    return check


def _list_of(
    each: Callable[[str, str], str], limit: int = _LIST_MAX
) -> Callable[[str, str], tuple[str, ...]]:
    def check(name: str, text: str) -> tuple[str, ...]:
        words = [word for word in re.split(r"[,;\s]+", text) if word]
        if len(words) > limit:
            raise PropertyError(f"{name}: more than {limit} entries")
        return tuple(each(name, word) for word in words)

    return check


def _address(name: str, text: str) -> str:
    try:
        if "%" in text:
            raise ValueError("a zone is not allowed")
        return str(ip_address(text))
    except ValueError as error:
        raise PropertyError(f"{name} {text[:80]!r}: {error}") from None


def _network(name: str, text: str) -> str:
    try:
        return str(ip_network(text, strict=False))
    except ValueError as error:
        raise PropertyError(f"{name} {text[:80]!r}: {error}") from None


_host_name = _matching(_HOST_NAME, 253)
_own_name = _matching(_HOST_NAME, _OWN_NAME_CHARS)


def _server(name: str, text: str) -> str:
    """A host name, or an address of either family."""
    return _address(name, text) if ":" in text else _host_name(name, text)


_CHECKS: Mapping[str, Callable[[str, str], str | tuple[str, ...]]] = {
    "hostname": _own_name,
    "ipv4_address": _ipv4_address,
    "ipv4_gateway": _gateway(IPv4Address),
    "ipv6_address": _ipv6_address,
    "ipv6_gateway": _gateway(IPv6Address),
    "dns": _list_of(_address),
    "search_domain": _host_name,
    "ntp": _list_of(_server),
    "admin_email": _matching(_EMAIL, 254),
    "ssh_key": _matching(_SSH_KEY, 2200),
    "time_zone": _matching(_TIME_ZONE, 64),
    "management_networks": _list_of(_network),
    "nfs_networks": _list_of(_network),
    "nbd_networks": _list_of(_network),
    "iscsi_networks": _list_of(_network),
}
