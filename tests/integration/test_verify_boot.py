"""`verify --boot`: a recovery point proves itself by booting, and leaves nothing behind."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.jobs.verification_stages import StageName
from lab.guests import GuestKind
from tests.support.guest_images import fresh_copy
from tests.support.holdfast_program import run, run_json, serving
from tests.support.needs import needs
from tests.support.programs import run as run_program

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


def reasons(guest: dict[str, Any]) -> dict[str, str | None]:
    """Reason code by stage; None: passed."""
    return {
        stage["stage"]: stage["reason"] and stage["reason"]["code"] for stage in guest["stages"]
    }


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
    assert [stage["stage"] for stage in second["stages"]] == [stage.value for stage in StageName]
    assert second["verdict"] == "passed" and second["recovery_seconds"] > second["ready_seconds"]
    assert [run["recovery_seconds"] for run in second["recovery_trend"]] == [
        pytest.approx(first["recovery_seconds"], abs=0.001),
        pytest.approx(second["recovery_seconds"], abs=0.001),
    ]
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
    assert reasons(failed)["ready"] == "verify.not-ready"
    assert len(run_json(home, "point", "list")) == 1


APPLICATION = """
[[guest]]
name = "first"
vm = "tiny"
memory_mib = 256
probes = ["serial:HOLDFAST-READY tiny"]

[[guest]]
name = "second"
vm = "tiny"
memory_mib = 256
after = ["first"]
probes = ["serial:HOLDFAST-READY tiny", "http:8080/ status=200 text=holdfast tiny guest", "ping"]
scripts = ["fetch 10.0.2.15 8080 => FETCH ok"]
rto = "1s"

[[guest]]
vm = "broken"
memory_mib = 256
timeout = "8s"
after = ["first"]
probes = ["tcp:7777"]
check_file_systems = true

[[guest]]
name = "needs-broken"
vm = "tiny"
after = ["broken"]
probes = ["tcp:7777"]
"""


def test_an_application_boots_in_order_and_every_verdict_is_right(
    home: Path, tmp_path: Path
) -> None:
    """Two guests that talk to each other pass; one without a kernel fails with its own last words
    though its file system is sound; one that needs it is not started. All of it is certified."""
    needs("debugfs", "qemu-storage-daemon", "fusermount3", "e2fsck")
    disk = fresh_copy(GuestKind.TINY, tmp_path)
    run_program("debugfs", "-w", "-R", "rm /boot/vmlinuz", f"{disk}?offset={1 << 20}")
    run_json(home, "backup", "image", "--vm", "broken", disk)
    file, report = tmp_path / "application.toml", tmp_path / "report"
    file.write_text(APPLICATION)
    words = ("verify", "--application", file, "--report", report, "--artifacts", tmp_path / "kept")
    document = run_json(home, *words, expect=1)
    first, second, broken, dependent = document["guests"]

    assert first["verdict"] == second["verdict"] == "passed"
    assert second["scripts"][0]["detail"] == "FETCH ok"
    assert {reason["code"] for reason in second["reasons"]} == {
        "verify.rto-exceeded",
        "verify.ping-impossible",
    }
    assert broken["verdict"] == "failed" and broken["ready"] is False
    assert reasons(broken)["file-systems"] is None
    assert reasons(broken)["ready"] == "verify.no-heartbeat"
    assert reasons(broken)["probed"] == "verify.boot-file-missing"
    assert [kept["name"] for kept in broken["evidence"]][:2] == ["screen.png", "screen.txt"]
    assert "GRUB" in Path(broken["evidence"][1]["path"]).read_text()
    assert dependent["verdict"] == "failed"
    assert reasons(dependent)["published"] == "verify.dependency-failed"

    certificate = Path(document["certificate"]["path"])
    body = json.loads(certificate.read_text())["body"]
    assert [guest["verdict"] for guest in body["guests"]] == [
        *("passed", "passed"),
        *("failed", "failed"),
    ]
    copy = report / certificate.name
    assert run_json(tmp_path / "elsewhere", "certificate", "verify", copy)["verified"]
    assert not (tmp_path / "elsewhere").exists(), "checked without any state"
    page = (report / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 3 and "<script" not in page
    assert json.loads((report / "report.json").read_text())["run_id"] == document["run_id"]


def test_a_job_boots_what_it_covers(home: Path) -> None:
    """Made by a command, run by the daemon; the run says what was proven and how long it took."""
    run_json(
        home,
        *("job", "create", "proof", "--kind", "verification", "--vm", "tiny", "--probe", READY),
        *("--check-file-systems", "--rto", "10min"),
    )
    words = ("serve", "--bind", "127.0.0.1", "--port", "0", "--nfs-port", "0", "--portmap", "none")
    with serving(home, *words):
        ended = run_json(home, "job", "run", "proof", "--wait")
        assert ended["outcome"] == "success", ended
        (vm,) = ended["result"]["vms"]
        assert (vm["vm"], vm["place"], vm["verdict"]) == ("tiny", "sandbox", "passed")
        assert 0 < vm["recovery_seconds"] < vm["rto_seconds"] == 600
        shown = run(home, "run", "show", ended["run_id"]).stdout
        assert "passed in the sandbox, ready in" in shown
        assert f"certificate {ended['result']['certificate']['sequence']}" in shown


def test_certificates_of_all_runs_form_a_chain(home: Path, tmp_path: Path) -> None:
    """Each run adds one; a changed or missing one is refused by name, another key distrusted."""
    run(home, "verify", "--vm", "tiny", "--check-file-systems", "--rpo", "1h")
    key = tmp_path / "key.pem"
    key.write_text(run(home, "certificate", "key").stdout)
    run(home, "certificate", "rotate-key")
    run(home, "verify", "--vm", "tiny", "--hash-share", "0.1")
    listed = run_json(home, "certificate", "list")
    files = [entry["path"] for entry in listed]
    assert [entry["sequence"] for entry in listed] == list(range(1, len(files) + 1))
    assert run_json(home, "certificate", "show", str(len(files)))["verdict"] == "passed"
    proven = run_json(tmp_path, "certificate", "verify", *files, "--key", key)
    assert proven["trust"] == "key-given" and len(proven["keys"]) == 2
    refused = run_json(tmp_path, "certificate", "verify", files[0], files[2], expect=1)
    assert refused["error"]["code"] == "certificate.chain-broken"
    changed = tmp_path / "changed.json"
    changed.write_text(Path(files[-1]).read_text().replace('"tiny"', '"tidy"'))
    refused = run_json(tmp_path, "certificate", "verify", changed, expect=1)
    assert refused["error"]["code"] == "certificate.tampered"
    assert "changed.json" in refused["error"]["message"]
    other = tmp_path / "other"
    key.write_text(run(other, "certificate", "key").stdout)
    refused = run_json(tmp_path, "certificate", "verify", *files, "--key", key, expect=1)
    assert refused["error"]["code"] == "certificate.wrong-key"


@pytest.mark.parametrize(
    "words",
    [
        ("verify",),
        ("verify", "latest:tiny", "--vm", "tiny"),
        ("verify", "--vm", "tiny", "--boot"),
        ("verify", "--vm", "tiny", "--boot", "--probe", "ping"),
        ("verify", "--vm", "tiny", "--probe", "tcp:80"),
        ("verify", "--vm", "tiny", "--rto", "soon"),
        ("verify", "--vm", "tiny", "--hash-share", "2"),
        ("verify", "--vm", "tiny", "--boot", "--probe", "tcp:80", "--expect-text", "x"),
        ("verify", "--application", "/nowhere.toml"),
        ("certificate", "show", "999"),
        ("certificate", "verify", "/nowhere"),
    ],
    ids=" ".join,
)
def test_what_cannot_be_meant_is_a_usage_error(words: tuple[str, ...], home: Path) -> None:
    """Exit code 2, and no certificate."""
    before = len(run_json(home, "certificate", "list"))
    assert run_json(home, *words, expect=2)["error"]["code"] == "usage"
    assert len(run_json(home, "certificate", "list")) == before
