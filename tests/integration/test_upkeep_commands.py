"""`holdfast repo gc`, `check` and `rebuild-index`, as scripts use them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.small_backups import random_disk

pytestmark = pytest.mark.integration


def holdfast(path: Path, *words: str) -> tuple[int, Any]:
    command = [sys.executable, "-m", "appliance.cli.main", *words, "--repo", str(path), "--json"]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    return done.returncode, json.loads(done.stdout)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "disk").write_bytes(random_disk(1, 300))
    assert holdfast(tmp_path / "r", "repo", "init")[0] == 0
    for vm in ("a", "b"):
        code, _ = holdfast(tmp_path / "r", "backup", "image", "--vm", vm, str(tmp_path / "disk"))
        assert code in (0, 3)
        (tmp_path / "disk").write_bytes(random_disk(2, 300))
    return tmp_path / "r"


def test_garbage_is_shown_then_freed(path: Path) -> None:
    """A dry run and a run agree; afterwards there is nothing to free."""
    _, points = holdfast(path, "point", "list", "--vm", "a")
    listed = points if isinstance(points, list) else points["points"]
    assert holdfast(path, "point", "forget", listed[0]["point_id"])[0] == 0
    code, dry = holdfast(path, "repo", "gc", "--dry-run")
    assert (code, dry["dry_run"]) == (0, True)
    assert dry["plan"]["freed_bytes"] > 1_000_000
    code, done = holdfast(path, "repo", "gc")
    assert (code, done["freed_bytes"]) == (0, dry["plan"]["freed_bytes"])
    assert holdfast(path, "repo", "gc", "--dry-run")[1]["plan"]["freed_bytes"] == 0
    assert holdfast(path, "repo", "check", "--read-data")[1]["clean"] is True


def test_damage_gives_exit_code_1_and_names_the_point(path: Path) -> None:
    """And a sound repository 0."""
    code, report = holdfast(path, "repo", "check", "--read-data")
    assert (code, report["clean"], report["affected"]) == (0, True, [])
    pack = max(path.rglob("*.pack"), key=lambda file: file.stat().st_size)
    data = bytearray(pack.read_bytes())
    data[5000] ^= 1
    pack.chmod(0o600)
    pack.write_bytes(data)
    code, report = holdfast(path, "repo", "check", "--read-data")
    assert (code, report["clean"]) == (1, False)
    _, points = holdfast(path, "point", "list")
    listed = points if isinstance(points, list) else points["points"]
    assert {disk["point_id"] for disk in report["affected"]} < {p["point_id"] for p in listed}


def test_a_garbage_index_is_made_anew(path: Path) -> None:
    """Other commands say what to do; rebuild-index does it."""
    (path / "lmdb" / "data.mdb").write_bytes(b"\xff" * 65536)
    code, failed = holdfast(path, "point", "list")
    assert (code, failed["error"]["code"]) == (1, "repository.index-damaged")
    code, report = holdfast(path, "repo", "rebuild-index")
    assert (code, report["complete"], report["replaced"]) == (0, True, True)
    assert holdfast(path, "repo", "check", "--read-data")[0] == 0
