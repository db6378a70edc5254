"""Programs a test needs: a missing one skips with its name, and fails where nothing may skip."""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest


def needs(*programs: str) -> None:
    missing = [program for program in programs if shutil.which(program) is None]
    if not missing:
        return
    missing_reason(f"missing programs: {', '.join(missing)}")


def missing_reason(reason: str) -> NoReturn:
    """Skip the test with `reason`, or fail it where nothing may skip."""
    if os.environ.get("HOLDFAST_NO_SKIP"):
        pytest.fail(reason)
    pytest.skip(reason)
