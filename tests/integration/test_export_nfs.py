"""`holdfast export nfs` with clients that nobody here wrote: libnfs's programs and QEMU.

No portmapper is involved: libnfs takes ports in its URLs. (QEMU cannot; it has tests of its own.)
"""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.holdfast_program import run, run_json, serving
from tests.support.needs import needs

CONTENT = os.urandom(3 << 20) + bytes(5 << 20)
pytestmark = pytest.mark.integration
FREE = ("--port", "0", "--portmap", "none")


def nfs(*words: str | Path) -> bytes:
    return subprocess.run([*map(str, words)], check=True, capture_output=True, timeout=60).stdout


def url(document: Any, name: str) -> str:
    path, _, ports = document["exports"][0]["uri"].partition("?")
    return f"{path}/{name}?{ports}"


@pytest.fixture
def point(tmp_path: Path) -> str:
    needs("nfs-cat", "nfs-cp", "nfs-ls")
    disk = tmp_path / "disk.raw"
    disk.write_bytes(CONTENT)
    run(tmp_path, "repo", "init")
    return str(run_json(tmp_path, "backup", "image", "--vm", "web", disk)["point_id"])


def test_a_read_only_export_shows_the_disk_and_refuses_writes(tmp_path: Path, point: str) -> None:
    """Every byte of the disk arrives; nothing can be written or made."""
    with serving(tmp_path, "export", "nfs", point, *FREE) as (_, document):
        assert b"disk-0.raw" in nfs("nfs-ls", document["exports"][0]["uri"])
        assert nfs("nfs-cat", url(document, "disk-0.raw")) == CONTENT
        refused = subprocess.run(
            ["nfs-cp", tmp_path / "disk.raw", url(document, "new")], capture_output=True, timeout=60
        )
        assert refused.returncode
        assert b"ROFS" in refused.stderr + refused.stdout


def test_writes_of_a_killed_export_are_there_when_it_is_served_again(
    tmp_path: Path, point: str
) -> None:
    """An acknowledged file survives kill -9 of the server."""
    changed = os.urandom(1 << 20)
    other = tmp_path / "other"
    other.write_bytes(changed)
    words = ("export", "nfs", point, *FREE, "--writable")
    with serving(tmp_path, *words) as (process, document):
        nfs("nfs-cp", other, url(document, "vmware.log"))
        process.send_signal(signal.SIGKILL)
        process.wait()
    with serving(tmp_path, *words) as (_, document):
        assert nfs("nfs-cat", url(document, "vmware.log")) == changed
        assert nfs("nfs-cat", url(document, "disk-0.raw")) == CONTENT


def test_an_export_beyond_loopback_wants_to_know_its_clients(tmp_path: Path, point: str) -> None:
    """Nothing is served to everybody by default."""
    done = run(tmp_path, "export", "nfs", point, *FREE, "--bind", "0.0.0.0", expect=2)
    assert "--client" in done.stderr
