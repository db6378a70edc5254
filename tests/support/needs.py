"""Programs a test needs: a missing one skips with its name, and fails where nothing may skip."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NoReturn

import pytest


def needs(*programs: str) -> None:
    missing = [program for program in programs if shutil.which(program) is None]
    if not missing:
        return
    missing_reason(f"missing programs: {', '.join(missing)}")


def needs_loop_devices() -> None:
    """Hot-added disks are loop devices over FUSE."""
    needs("losetup", "fusermount3", "qemu-storage-daemon")
    if os.geteuid() != 0 or not Path("/dev/loop-control").exists():
        missing_reason("loop devices need root and /dev/loop-control")


def missing_reason(reason: str) -> NoReturn:
    """Skip the test with `reason`, or fail it where nothing may skip."""
    if os.environ.get("HOLDFAST_NO_SKIP"):
        pytest.fail(reason)
    pytest.skip(reason)
