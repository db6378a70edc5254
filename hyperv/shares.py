"""Shares of our own, for hosts whose admin shares are switched off: a drive's root, hidden.

Only the account that asks may use one. They carry the marker as their description, and go when the
run ends. Thread model: functions; they block.
"""

from __future__ import annotations

from collections.abc import Sequence

from hyperv.host_session import HostSession
from hyperv.marker import Marker
from hyperv.patience import Patience
from hyperv.script_types import MarkedShares, Removed, Share


def share_drives(
    host: HostSession, drives: Sequence[str], marker: Marker, patience: Patience
) -> dict[str, str]:
    """Return share by drive letter, for reading. Raises HypervError."""
    return _share(host, drives, marker, patience, writable=False)


def share_for_writing(
    host: HostSession, drives: Sequence[str], marker: Marker, patience: Patience
) -> dict[str, str]:
    """As `share_drives`, for a restore. Raises HypervError."""
    return _share(host, drives, marker, patience, writable=True)


def _share(
    host: HostSession,
    drives: Sequence[str],
    marker: Marker,
    patience: Patience,
    *,
    writable: bool,
) -> dict[str, str]:
    return {
        drive: host.call(
            "share_folder",
            {"marker": marker.text, "folder": f"{drive}:\\", "writable": writable},
            Share,
            patience=patience,
        ).share
        for drive in drives
    }


def unshare(host: HostSession, marker: str, patience: Patience) -> int:
    """Remove all shares of a marker. Raises HypervError."""
    return host.call("unshare_folder", {"marker": marker}, Removed, patience=patience).removed


def list_shares(host: HostSession, prefix: str, patience: Patience) -> list[str]:
    """Return the markers of our shares. Raises HypervError."""
    found = host.call("list_shares", {"prefix": prefix}, MarkedShares, patience=patience)
    return [share.marker for share in found.shares]
