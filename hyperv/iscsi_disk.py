"""A disk that a Hyper-V host reaches over iSCSI: logged in to, brought online, and given back.

    connect -> online (folder of ours) -> … -> offline -> disconnect
            -> hold_offline (number of a disk for pass-through) -> … -> offline -> disconnect

The login does not outlive a restart of the host. Each call may be repeated.
Thread model: functions; they block. Source: scripts `connect_iscsi`, `online_disk`, `offline_disk`,
`disconnect_iscsi`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hyperv.errors import HypervError
from hyperv.host_session import HostSession
from hyperv.patience import Patience
from hyperv.script_types import Answer

VOLUMES = "\\holdfast\\volumes\\"  # in lower case: where online disks are shown, by marker


@dataclass(frozen=True, slots=True, kw_only=True)
class IscsiDisk:
    """One LUN of one target, found by its serial number; `marker` names the folder it is in."""

    portal: str
    port: int
    target: str
    serial: str
    marker: str


class _Connected(Answer):
    initiator: str
    connected: bool


class _Online(Answer):
    disk_number: int
    folder: str


class _Found(Answer):
    found: bool


def connect(
    host: HostSession,
    disk: IscsiDisk,
    *,
    user: str,
    secret: Callable[[], str],
    patience: Patience,
) -> str:
    """Log in, and return the host's initiator name. Raises HypervError."""
    parameters = {
        "portal": disk.portal,
        "port": disk.port,
        "target": disk.target,
        "chap_user": user,
        "chap_secret": secret(),
    }
    answer = host.call("connect_iscsi", parameters, _Connected, patience=patience)
    if not answer.connected:
        raise HypervError(f"{host.address}: not logged in to {disk.target}")
    return answer.initiator


def online(host: HostSession, disk: IscsiDisk, patience: Patience) -> str:
    """Return the folder that shows the disk's volume. Raises HypervError."""
    parameters = {"serial": disk.serial, "marker": disk.marker, "mount": True}
    return host.call("online_disk", parameters, _Online, patience=patience).folder


def hold_offline(host: HostSession, disk: IscsiDisk, patience: Patience) -> int:
    """Return the host's number of the disk, which stays offline, as a VM takes it whole.

    Raises HypervError.
    """
    parameters = {"serial": disk.serial, "marker": disk.marker, "mount": False}
    return host.call("online_disk", parameters, _Online, patience=patience).disk_number


def offline(host: HostSession, disk: IscsiDisk, patience: Patience) -> None:
    """Take the volume and its folder away; what is not there is gone. Raises HypervError."""
    parameters = {"serial": disk.serial, "marker": disk.marker}
    host.call("offline_disk", parameters, _Found, patience=patience)


def disconnect(host: HostSession, disk: IscsiDisk, patience: Patience) -> None:
    """Log out, and forget the portal if nothing else uses it. Raises HypervError."""
    parameters = {"portal": disk.portal, "port": disk.port, "target": disk.target}
    host.call("disconnect_iscsi", parameters, _Found, patience=patience)


def is_on(disk: IscsiDisk, path: str) -> bool:
    """Whether a file of the host lies on the disk."""
    return f"{VOLUMES}{disk.marker}".lower() + "\\" in path.lower() + "\\"
