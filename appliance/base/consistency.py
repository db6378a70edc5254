"""What is asked of a guest when its disks are frozen, and what can be said of its data then."""

from __future__ import annotations

from enum import StrEnum


class Consistency(StrEnum):
    """What was true when the disks were frozen, not what was asked for."""

    CRASH = "crash"
    FILE_SYSTEM = "file-system"
    APPLICATION = "application"
    OFFLINE = "offline"


class GuestLogs(StrEnum):
    """What applications in the guest do with their logs once they know of a backup."""

    KEEP = "keep"
    TRUNCATE = "truncate"
