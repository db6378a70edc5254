"""What is served over iSCSI: a target with its LUNs, and who may log in.

Identities are stable: name, serial number and identifier of a LUN come from what it shows, never
from a process or the order of starting, so a host that comes back finds the same disk, and no two
LUNs are taken for two paths to one.
Thread model: immutable.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import string
from dataclasses import dataclass
from ipaddress import ip_network

from appliance.base.errors import UsageError
from appliance.base.secret import Secret
from appliance.blocks.device import BlockDevice

NAME_PREFIX = "iqn.2026-01.net.holdfast"
VENDOR, PRODUCT, REVISION = "Holdfast", "Recovery", "1"
_NAME = re.compile(r"(iqn\.[0-9]{4}-[0-9]{2}\.|eui\.|naa\.)[a-z0-9.:-]{1,200}", re.IGNORECASE)
_USER = re.compile(r"[A-Za-z0-9.:_-]{1,200}")
_SECRET_LEAST, _SECRET_MOST = 12, 16  # what Microsoft's initiator takes
_SECRET_ALPHABET = string.ascii_letters + string.digits


@dataclass(frozen=True, slots=True, kw_only=True)
class Chap:
    """One-way CHAP: the initiator proves that it knows the secret."""

    user: str
    secret: Secret

    def __post_init__(self) -> None:
        """Raises UsageError: Microsoft's initiator, or tgt, would not take it."""
        text = self.secret.reveal()
        if not _USER.fullmatch(self.user):
            raise UsageError("a CHAP user is letters, digits and . : _ -")
        if not _SECRET_LEAST <= len(text) <= _SECRET_MOST:
            raise UsageError(f"a CHAP password has {_SECRET_LEAST} to {_SECRET_MOST} characters")
        if not all(0x21 <= byte < 0x7F for byte in text) or b"," in text:
            raise UsageError("a CHAP password is printable ASCII without spaces and commas")


def new_secret() -> Secret:
    return Secret.of_text("".join(secrets.choice(_SECRET_ALPHABET) for _ in range(_SECRET_MOST)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Lun:
    """`identity`: at most 16 characters, of this LUN alone, for good."""

    number: int
    identity: str
    device: BlockDevice
    read_only: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.number <= 255:
            raise UsageError(f"LUN {self.number}: LUNs are numbered from 1 to 255")
        if not re.fullmatch(r"[A-Za-z0-9.-]{1,16}", self.identity):
            raise UsageError(f"{self.identity!r} is no identity of a LUN")


@dataclass(frozen=True, slots=True, kw_only=True)
class IscsiTarget:
    """`initiators`: names, or addresses and networks; one that is named twice needs either."""

    name: str
    luns: tuple[Lun, ...]
    chap: Chap
    initiators: tuple[str, ...]

    def __post_init__(self) -> None:
        """Raises UsageError naming what is wrong."""
        if not _NAME.fullmatch(self.name):
            raise UsageError(f"{self.name!r} is no iSCSI name")
        if not self.luns or not self.initiators:
            raise UsageError(f"{self.name}: neither LUNs nor initiators may be missing")
        for initiator in self.initiators:
            check_initiator(initiator)

    @property
    def number(self) -> int:
        """Stands in the identifiers that tgt makes of its own, so the same at every start."""
        digest = hashlib.sha256(self.name.encode()).digest()
        return int.from_bytes(digest[:4], "big") & 0x7FFFFFFF or 1


def target_name(identity: str) -> str:
    """Of a session or a recovery point, by what tells it from others."""
    return f"{NAME_PREFIX}:{identity}"


def disk_serial(identity: str, number: int) -> str:
    """Of a LUN that shows one disk of several; `identity`: at most 12 characters."""
    return f"{identity}-{number}"


def is_initiator_name(initiator: str) -> bool:
    return _NAME.fullmatch(initiator) is not None


def check_initiator(initiator: str) -> None:
    """Raises UsageError: it is neither a name nor an address or network."""
    if is_initiator_name(initiator):
        return
    try:
        ip_network(initiator, strict=True)
    except ValueError as error:
        raise UsageError(
            f"initiator {initiator!r}: neither an iSCSI name nor an address or network"
        ) from error
