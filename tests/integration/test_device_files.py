"""Devices as files: what the mount leaves behind in the process that had it."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from appliance.exports.iscsi.device_files import DeviceFiles
from tests.support.needs import needs

pytestmark = pytest.mark.integration


def test_a_peer_that_goes_away_does_not_end_a_process_that_had_a_mount(tmp_path: Path) -> None:
    """libfuse gives SIGPIPE its deadly default back; Python ignores it, and must go on to."""
    needs("fusermount3")
    with DeviceFiles(tmp_path / "devices"):
        pass
    ignored = Path("/proc/self/status").read_text().partition("SigIgn:")[2].split()[0]
    assert int(ignored, 16) >> (signal.SIGPIPE - 1) & 1
