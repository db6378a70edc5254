"""The command line as scripts use it: documents, exit codes, and what an administrator is told."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from appliance.base.units import MIB
from tests.support.holdfast_program import command, environment, run, run_json

DISK_BYTES = 24 * MIB


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """Sparse, with 6 MiB of data in three places."""
    source = random.Random(5)
    path = tmp_path / "web.raw"
    with path.open("wb") as file:
        file.truncate(DISK_BYTES)
        for offset in (0, 9 * MIB, 20 * MIB):
            file.seek(offset)
            file.write(source.randbytes(2 * MIB))
    return path


def patch(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def test_the_main_job_from_backup_to_restore(tmp_path: Path, disk: Path) -> None:
    """Back up, change, back up again with a change list, list, compare, restore both."""
    run_json(tmp_path, "repo", "init")
    first_bytes = disk.read_bytes()
    first = run_json(tmp_path, "backup", "image", "--vm", "web", disk)
    figures = first["disks"][0]
    assert figures["size_bytes"] == DISK_BYTES
    assert figures["read_bytes"] == figures["new_bytes"] == 6 * MIB
    assert figures["mode"] == "full"

    patch(disk, 10 * MIB + 100, b"changed" * 1000)
    changed = tmp_path / "changed.json"
    changed.write_text(json.dumps([{"start": 10 * MIB, "length": 65536}]))
    second = run_json(tmp_path, "backup", "image", "--vm", "web", disk, "--changed", changed)
    assert second["parent"] == first["point_id"]
    assert second["disks"][0]["mode"] == "changed"
    assert second["disks"][0]["read_bytes"] == 65536

    listed = run_json(tmp_path, "point", "list", "--vm", "web")
    assert [point["point_id"] for point in listed] == [first["point_id"], second["point_id"]]
    assert run_json(tmp_path, "point", "list", "--vm", "other") == []

    diff = run_json(tmp_path, "point", "diff", first["point_id"], second["point_id"])
    assert 0 < diff["disks"][0]["changed_bytes"] < MIB

    for point, expected in ((first, first_bytes), (second, disk.read_bytes())):
        output = tmp_path / f"{point['point_id']}.raw"
        run_json(tmp_path, "restore", "image", point["point_id"], "--disk", "0", "-o", output)
        assert output.read_bytes() == expected
        assert run_json(tmp_path, "verify", point["point_id"])["verified"] is True
    assert run_json(tmp_path, "repo", "stats")["point_count"] == 2


def test_a_restore_never_overwrites_without_force(tmp_path: Path, disk: Path) -> None:
    """An existing file stays as it is and the command says how to go on."""
    run_json(tmp_path, "repo", "init")
    point = run_json(tmp_path, "backup", "image", "--vm", "web", disk)["point_id"]
    output = tmp_path / "precious"
    output.write_bytes(b"precious")
    refused = run(tmp_path, "restore", "image", point, "-o", output, expect=None)
    assert refused.returncode in (1, 2)
    assert "--force" in refused.stderr
    assert output.read_bytes() == b"precious"
    run(tmp_path, "restore", "image", point, "-o", output, "--force")
    assert output.read_bytes() == disk.read_bytes()


def test_an_encrypted_repository_needs_its_passphrase(tmp_path: Path, disk: Path) -> None:
    """Without it: refused; with a wrong one: told apart; changed: only the new one opens."""
    secret, other = tmp_path / "secret", tmp_path / "other"
    secret.write_text("correct horse\n")
    other.write_text("battery staple\n")
    made = run_json(tmp_path, "repo", "init", "--passphrase-file", secret, "--with-recovery-key")
    recovery = tmp_path / "recovery"
    recovery.write_text(made["recovery_key"] + "\n")
    run(tmp_path, "backup", "image", "--vm", "web", disk, "--passphrase-file", secret)
    refused = run_json(tmp_path, "point", "list", expect=2)
    assert refused["error"]["code"] == "repository.passphrase-required"
    wrong = run_json(tmp_path, "point", "list", "--passphrase-file", other, expect=1)
    assert wrong["error"]["code"] == "repository.wrong-passphrase"
    run(
        tmp_path,
        *("repo", "change-passphrase", "--passphrase-file", secret),
        *("--new-passphrase-file", other),
    )
    run_json(tmp_path, "point", "list", "--passphrase-file", secret, expect=1)
    assert len(run_json(tmp_path, "point", "list", "--passphrase-file", other)) == 1
    assert len(run_json(tmp_path, "point", "list", "--recovery-key-file", recovery)) == 1
    marker = disk.read_bytes()[:64]
    stored = [
        path.read_bytes() for path in (tmp_path / "repository").rglob("*.*") if path.is_file()
    ]
    assert not any(marker in blob or b'"web"' in blob for blob in stored)


@pytest.mark.parametrize(
    "text",
    [
        "not json",
        "{}",
        '[{"start": -1, "length": 5}]',
        '[{"start": 0}]',
        '[{"start": true}]',
        "[7]",
    ],
)
def test_a_bad_change_list_is_named(tmp_path: Path, disk: Path, text: str) -> None:
    """Exit code 2, the file named, no recovery point."""
    run_json(tmp_path, "repo", "init")
    changed = tmp_path / "changed.json"
    changed.write_text(text)
    refused = run(tmp_path, "backup", "image", "--vm", "web", disk, "--changed", changed, expect=2)
    assert "changed.json" in refused.stderr
    assert run_json(tmp_path, "point", "list") == []


def test_a_point_is_found_by_prefix_and_by_latest(tmp_path: Path, disk: Path) -> None:
    """As people type them; what is ambiguous or unknown is refused."""
    run_json(tmp_path, "repo", "init")
    points = [
        run_json(tmp_path, "backup", "image", "--vm", "web", disk)["point_id"] for _ in range(2)
    ]
    shown = run_json(tmp_path, "point", "show", "latest:web")
    assert shown["point_id"] == points[1]
    assert run_json(tmp_path, "point", "show", points[0][:-2])["point_id"] == points[0]
    assert run_json(tmp_path, "point", "show", "2", expect=2)["error"]["code"] == "usage"
    unknown = run_json(tmp_path, "point", "show", "../../etc/passwd", expect=1)
    assert unknown["error"]["code"] == "repository.point-not-found"


def test_prune_shows_its_plan_before_it_acts(tmp_path: Path, disk: Path) -> None:
    """A dry run changes nothing; the real run removes what the plan said, with a reason each."""
    run_json(tmp_path, "repo", "init")
    for _ in range(3):
        run_json(tmp_path, "backup", "image", "--vm", "web", disk)
    plan = run_json(tmp_path, "prune", "--keep-last", "1", "--dry-run")
    assert [point["action"] for point in plan["points"]].count("keep") == 1
    assert all(point["reason"] for point in plan["points"])
    assert len(run_json(tmp_path, "point", "list")) == 3
    run_json(tmp_path, "prune", "--keep-last", "1")
    kept = [point["point_id"] for point in plan["points"] if point["action"] == "keep"]
    assert [point["point_id"] for point in run_json(tmp_path, "point", "list")] == kept


def test_a_disk_that_shrank_is_read_whole_with_the_reason(tmp_path: Path, disk: Path) -> None:
    """A warning with a code and a next step, exit code 3, and a right recovery point."""
    run_json(tmp_path, "repo", "init")
    run_json(tmp_path, "backup", "image", "--vm", "web", disk)
    with disk.open("r+b") as file:
        file.truncate(12 * MIB)
    shrunk = run_json(tmp_path, "backup", "image", "--vm", "web", disk, expect=3)
    assert shrunk["disks"][0]["reasons"][0]["code"] == "full.disk-shrunk"
    output = tmp_path / "out.raw"
    run_json(tmp_path, "restore", "image", shrunk["point_id"], "-o", output)
    assert output.read_bytes() == disk.read_bytes()


def test_an_interrupted_backup_leaves_no_point_and_the_next_one_works(tmp_path: Path) -> None:
    """Ctrl-C half way: exit code 1, no recovery point, no unfinished blob left in the way."""
    disk = tmp_path / "big.raw"
    source = random.Random(1)
    with disk.open("wb") as file:
        for _ in range(40):
            file.write(source.randbytes(8 * MIB))
    run_json(tmp_path, "repo", "init")
    words = command("backup", "image", "--vm", "big", disk)
    process = subprocess.Popen(words, env=environment(tmp_path), stderr=subprocess.PIPE, text=True)
    unfinished = tmp_path / "repository" / "tmp"
    deadline_s = time.monotonic() + 60
    while not (unfinished.exists() and any(unfinished.iterdir())):
        assert time.monotonic() < deadline_s and process.poll() is None
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1, said
    assert "cancelled" in said
    assert run_json(tmp_path, "point", "list") == []
    assert not any(unfinished.iterdir())
    run_json(tmp_path, "backup", "image", "--vm", "big", disk)
    assert len(run_json(tmp_path, "point", "list")) == 1


def test_every_command_explains_itself(tmp_path: Path) -> None:
    """`--help` of the program names each group, and a wrong word exits with 2."""
    helped = run(tmp_path, "--help").stdout
    for group in ("repo", "backup", "point", "prune", "restore", "export", "verify"):
        assert re.search(rf"^\s+{group}\s", helped, re.MULTILINE), group
    run(tmp_path, "nonsense", expect=2)
