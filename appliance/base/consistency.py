"""What can be said of the guest's data at the moment its disks were frozen."""

from __future__ import annotations

from enum import StrEnum


class Consistency(StrEnum):
    """What was true when the disks were frozen, not what was asked for."""

    CRASH = "crash"
    FILE_SYSTEM = "file-system"
    APPLICATION = "application"
    OFFLINE = "offline"
