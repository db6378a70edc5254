"""`verify --boot`: a recovery point proves itself by booting, and leaves nothing behind."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.guests import GuestKind
from tests.support.guest_images import fresh_copy
from tests.support.holdfast_program import run_json
from tests.support.needs import needs

pytestmark = pytest.mark.integration

READY = "serial:HOLDFAST-READY tiny"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A repository with one point of the tiny guest."""
    needs("qemu-system-x86_64")
    folder = tmp_path_factory.mktemp("home")
    run_json(folder, "repo", "init")
    run_json(folder, "backup", "image", "--vm", "tiny", fresh_copy(GuestKind.TINY, folder))
    yield folder


def boot_folders() -> set[Path]:
    return set(Path(tempfile.gettempdir()).glob("holdfast-boot-*"))


def test_a_point_boots_and_the_next_boot_knows_what_to_fetch(home: Path) -> None:
    """Probes, times, bytes read and a screenshot are reported; the second boot uses the profile
    of the first; the sandbox folders are gone and the point is as it was."""
    before = boot_folders()
    words = ("verify", "--vm", "tiny", "--boot", "--probe", READY, "--probe", "tcp:7777")
    first = run_json(home, *words)
    assert first["ready"] and all(probe["passed"] for probe in first["probes"])
    assert first["ready_seconds"] >= first["first_byte_seconds"] > 0
    assert first["read_bytes"] > 0 and first["prefetched_bytes"] == 0
    assert Path(first["screenshot_path"]).read_bytes().startswith(b"\x89PNG")
    second = run_json(home, *words)
    assert second["ready"] and second["prefetched_bytes"] > 0
    assert boot_folders() <= before
    assert run_json(home, "verify", "--vm", "tiny")["verified"]
    assert run_json(home, "repo", "check", "--read-data")


def test_a_guest_that_never_gets_ready_fails_its_proof(home: Path) -> None:
    """Exit code 1, the failed probe named, no recovery point lost."""
    failed = run_json(
        home,
        *("verify", "--vm", "tiny", "--boot", "--probe", "serial:NEVER SAID"),
        *("--timeout", "8"),
        expect=1,
    )
    assert failed["ready"] is False
    assert [probe["passed"] for probe in failed["probes"]] == [False]
    assert failed["power_off"] == "killed"
    assert len(run_json(home, "point", "list")) == 1
