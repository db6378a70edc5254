"""What is served over SMB: `SmbShare`, a folder of files that are devices, and who may use it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_network

from appliance.base.errors import UsageError
from appliance.base.secret import Secret
from appliance.blocks.device import BlockDevice

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
_COMPUTER = re.compile(r"[A-Za-z0-9_-]{1,63}\$")


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareAccount:
    """What hosts that are in no domain with us log in with."""

    user: str
    password: Secret


@dataclass(frozen=True, slots=True, kw_only=True)
class SmbShare:
    """`clients`: addresses and networks that may connect, and names of computer accounts (`HV1$`),
    which only mean something where we are a member of their domain. `files` by name."""

    name: str
    files: Mapping[str, BlockDevice]
    clients: tuple[str, ...]

    def __post_init__(self) -> None:
        """Raises UsageError naming what is wrong."""
        for name in (self.name, *self.files):
            if not _NAME.fullmatch(name):
                raise UsageError(f"{name!r} is no name for a share or its files")
        if not self.files or not self.addresses:
            raise UsageError(f"{self.name}: neither files nor addresses may be missing")
        for address in self.addresses:
            try:
                ip_network(address)
            except ValueError as error:
                raise UsageError(f"client {address!r}: no address, network or account") from error

    @property
    def addresses(self) -> tuple[str, ...]:
        return tuple(each for each in self.clients if not _COMPUTER.fullmatch(each))

    @property
    def computers(self) -> tuple[str, ...]:
        return tuple(each for each in self.clients if _COMPUTER.fullmatch(each))


def share_name(identity: str) -> str:
    """Of a session, by what tells it from others."""
    return f"holdfast-{identity}"
