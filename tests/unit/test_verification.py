"""Verdicts, plans and reports of verification runs; boots are in tests/integration."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from datetime import timedelta
from html.parser import HTMLParser
from pathlib import Path

import pytest

from appliance.base.errors import UsageError
from appliance.base.reasons import Reason
from appliance.base.run_context import RunContext
from appliance.blocks.partition_table import VolumeKind
from appliance.jobs import guest_stages
from appliance.jobs.point_hashes import verify_hashes
from appliance.jobs.verification import run_verification
from appliance.jobs.verification_file import read_application
from appliance.jobs.verification_outcome import (
    RPO_EXCEEDED,
    KeptFile,
    VerificationOutcome,
)
from appliance.jobs.verification_plan import BootOptions, GuestPlan, VerificationPlan
from appliance.jobs.verification_report import report_html, report_json
from appliance.jobs.verification_stages import (
    NOT_ASKED,
    StageName,
    StageResult,
    Verdict,
    failed,
    in_order,
    passed,
    skipped,
    verdict_of,
    verdict_of_all,
)
from appliance.repository.manifest import Manifest
from appliance.repository.repository import Repository
from appliance.sandbox.file_system_check import (
    CHECK_FAILED,
    DAMAGED,
    NO_CHECKER,
    VolumeCheck,
)
from appliance.sandbox.probes import parse_probe
from appliance.service.certified_verification import certified_verification
from appliance.service.home import Home
from tests.support.small_backups import SMALL_PACKS, back_up_bytes, random_disk

WHY = Reason("test.why", "because", "nothing")
HOSTILE = "<img src=x onerror=alert(1)>\"'&\x1b[2J\u202e</pre><script>"
ON = [passed(StageName.REGISTERED, 1), passed(StageName.POWERED_ON, 0)]


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Repository]:
    Repository.create(tmp_path / "r")
    with Repository.open(tmp_path / "r", options=SMALL_PACKS) as repository:
        yield repository


@pytest.fixture
def point(repository: Repository) -> Manifest:
    return back_up_bytes(repository, random_disk(3, 300), "web")


def hash_run(repository: Repository, folder: Path, **options: object) -> VerificationOutcome:
    plan = GuestPlan(point="latest:web", hash_share=1.0, **options)  # type: ignore[arg-type]
    return run_verification(
        repository,
        VerificationPlan(guests=(plan,)),
        RunContext.quiet(),
        run_id="r",
        artifact_folder=folder,
    )


def test_a_guest_that_is_on_and_says_nothing_has_failed() -> None:
    """Waiting proves nothing, whatever else has passed."""
    assert verdict_of(ON) is Verdict.FAILED
    assert verdict_of([*ON, passed(StageName.SCREENSHOT, 1)]) is Verdict.FAILED
    assert verdict_of([*ON, passed(StageName.HASHED, 1)]) is Verdict.FAILED
    assert verdict_of([*ON, skipped(StageName.PROBED, WHY)]) is Verdict.FAILED


@pytest.mark.parametrize("sign", [StageName.READY, StageName.PROBED, StageName.SCRIPT])
def test_any_sign_of_life_passes_and_any_failure_fails(sign: StageName) -> None:
    """One that failed is enough, also clean-up."""
    assert verdict_of([*ON, passed(sign, 1)]) is Verdict.PASSED
    for stage in StageName:
        if stage is not sign:
            assert verdict_of([*ON, passed(sign, 1), failed(stage, 1, WHY)]) is Verdict.FAILED


def test_nothing_done_is_no_proof() -> None:
    """Publishing alone says nothing about the guest."""
    assert verdict_of(in_order([])) is Verdict.SKIPPED
    assert verdict_of([passed(StageName.PUBLISHED, 1)]) is Verdict.SKIPPED
    assert verdict_of_all([Verdict.PASSED, Verdict.FAILED, Verdict.SKIPPED]) is Verdict.FAILED
    assert verdict_of_all([Verdict.PASSED, Verdict.SKIPPED]) is Verdict.PASSED


def test_what_did_not_pass_has_a_reason_and_what_passed_has_none() -> None:
    """No verdict without a word."""
    for verdict, reason in ((Verdict.PASSED, WHY), (Verdict.FAILED, None), (Verdict.SKIPPED, None)):
        with pytest.raises(ValueError, match="hashed"):
            StageResult(stage=StageName.HASHED, verdict=verdict, reason=reason)
    assert [stage.stage for stage in in_order(ON)] == list(StageName)
    assert in_order(ON)[0].reason is NOT_ASKED


def test_hashing_proves_the_whole_point_or_a_share(repository: Repository, point: Manifest) -> None:
    """A share is near what was asked, and drawn anew each time."""
    context = RunContext.quiet()
    whole = verify_hashes(repository, point, context).chunk_count
    shares = [verify_hashes(repository, point, context, share=0.5).chunk_count for _ in range(30)]
    assert whole >= 10 and max(shares) < whole
    assert len(set(shares)) > 1 and 0.3 < sum(shares) / 30 / whole < 0.7


@pytest.mark.parametrize(
    ("ended", "verdict"),
    [(None, "passed"), (CHECK_FAILED, "skipped"), (NO_CHECKER, "passed"), (DAMAGED, "failed")],
)
def test_a_checker_without_a_result_is_not_covered_by_a_sound_boot_partition(
    ended: Reason | None,
    verdict: str,
    repository: Repository,
    point: Manifest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One that crashes or is killed over the data volume has proven nothing about it."""
    boot = VolumeCheck(
        disk=0, number=1, kind=VolumeKind.FAT, seconds=0.1, reason=None, detail="clean"
    )
    data = VolumeCheck(
        disk=0, number=2, kind=VolumeKind.NTFS, seconds=0.1, reason=ended, detail="killed"
    )
    monkeypatch.setattr(guest_stages, "check_disk", lambda *_, **__: [boot, data])
    (guest,) = hash_run(repository, tmp_path, check_file_systems=True).guests
    found = next(stage for stage in guest.stages if stage.stage is StageName.FILE_SYSTEMS)
    assert found.verdict.value == verdict
    if ended is not None:
        assert ended in guest.reasons


def test_a_share_too_small_for_any_chunk_still_proves_one(
    repository: Repository, point: Manifest
) -> None:
    """A certificate does not say `hashed: passed` of a point of which nothing was read."""
    proven = verify_hashes(repository, point, RunContext.quiet(), share=1e-18)
    assert proven.chunk_count == 1 and proven.verified_bytes > 0


def test_damage_is_a_verdict_that_stops_the_stages_behind_it(
    repository: Repository, point: Manifest, tmp_path: Path
) -> None:
    """The reason is the error's own code; nothing is booted from a damaged point."""
    for pack in (tmp_path / "r" / "packs").rglob("*"):
        if pack.is_file():
            raw = bytearray(pack.read_bytes())
            raw[len(raw) // 2] ^= 1
            pack.chmod(0o600)
            pack.write_bytes(raw)
    outcome = hash_run(
        repository,
        tmp_path / "kept",
        boot=BootOptions(),
        probes=(parse_probe("tcp:80"),),
        check_file_systems=True,
    )
    (guest,) = outcome.guests
    by_stage = {stage.stage: stage for stage in guest.stages}
    assert outcome.verdict is Verdict.FAILED
    hashed = by_stage[StageName.HASHED].reason
    assert hashed is not None and hashed.code.startswith("repository.")
    for stage in (StageName.FILE_SYSTEMS, StageName.PUBLISHED, StageName.PROBED):
        assert by_stage[stage].verdict is Verdict.SKIPPED
    assert guest.boot is None and guest.recovery_s is None


def test_the_age_of_a_point_is_compared_with_the_objective(
    repository: Repository, point: Manifest, tmp_path: Path
) -> None:
    """An old point is proven, and warned of."""
    outcome = hash_run(repository, tmp_path, rpo=timedelta(microseconds=1))
    assert outcome.verdict is Verdict.PASSED
    assert outcome.reasons == (RPO_EXCEEDED,)
    assert hash_run(repository, tmp_path, rpo=timedelta(days=1)).reasons == ()


def test_a_certificate_that_cannot_be_issued_is_a_warning(
    repository: Repository, point: Manifest, tmp_path: Path
) -> None:
    """The verdict is about the guest, and stays."""
    home = tmp_path / "home"
    home.mkdir()
    home.chmod(0o777)
    plan = VerificationPlan(guests=(GuestPlan(point="latest:web", hash_share=1.0),))
    run = certified_verification(
        Home(home),
        repository,
        plan,
        RunContext.quiet(),
        run_id=repository.new_run_id(),
        artifact_folder=tmp_path / "kept",
    )
    assert run.outcome.verdict is Verdict.PASSED and run.certificate is None
    assert [reason.code for reason in run.reasons] == ["home.unsafe"] and run.reasons[0].warning


class Strict(HTMLParser):
    """Collects tags and attributes, as a browser would see them."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes.update(name for name, _ in attrs)


def test_whatever_a_guest_writes_is_text_in_the_report(
    repository: Repository, tmp_path: Path
) -> None:
    """Names, details, logs: no tag, no attribute, no control character comes of it."""
    back_up_bytes(repository, random_disk(3, 20), "web")
    outcome = hash_run(repository, tmp_path)
    log = tmp_path / "serial.log"
    log.write_bytes(HOSTILE.encode() + b"\xff\0" * 10 + b"\n" + b"x" * 100_000)
    (guest,) = outcome.guests
    guest = dataclasses.replace(
        guest,
        manifest=guest.manifest.model_copy(update={"vm": HOSTILE}),
        stages=tuple(
            dataclasses.replace(stage, detail=HOSTILE, reason=stage.reason)
            for stage in guest.stages
        ),
        evidence=(
            KeptFile(name="serial.log", path=log, size_bytes=1, sha256="ab" * 32),
            KeptFile(name="gone.png", path=tmp_path / "gone", size_bytes=1, sha256="ab" * 32),
        ),
        notes=(Reason.relayed(HOSTILE, HOSTILE, HOSTILE),),
    )
    page = report_html(dataclasses.replace(outcome, guests=(guest,)), None, {})
    reader = Strict()
    reader.feed(page)
    assert not reader.tags & {"script", "img", "iframe", "link", "form", "a"}
    assert not {name for name in reader.attributes if name.startswith("on")}
    assert "style" not in reader.attributes, "the page's own policy forbids inline styles"
    assert not re.search(r"[\x00-\x08\x0b-\x1f\u202e]", page)
    assert page.count(HOSTILE[:4]) == 0 and "&lt;img src=x" in page
    assert len(page) < 100_000
    assert "default-src &#x27;none&#x27;" in page or "default-src 'none'" in page


def test_a_report_is_one_json_document(repository: Repository, tmp_path: Path) -> None:
    """Whoever reads it by program gets the same."""
    back_up_bytes(repository, random_disk(3, 20), "web")
    document = json.loads(json.dumps(report_json(hash_run(repository, tmp_path), None, {})))
    assert document["verdict"] == "passed" and document["guests"][0]["chunk_count"] > 0


def test_a_plan_that_cannot_prove_anything_is_refused() -> None:
    """A boot without a probe that can pass, an order that has no beginning."""
    tcp = (parse_probe("tcp:80"),)
    boot = BootOptions()
    with pytest.raises(UsageError, match="at least one probe"):
        GuestPlan(point="p", boot=boot)
    with pytest.raises(UsageError, match="other than ping"):
        GuestPlan(point="p", boot=boot, probes=(parse_probe("ping"),))
    with pytest.raises(UsageError, match="booted"):
        GuestPlan(point="p", probes=tcp)
    first = GuestPlan(point="p", name="a", boot=boot, probes=tcp, after=("b",))
    second = GuestPlan(point="q", name="b", boot=boot, probes=tcp)
    with pytest.raises(UsageError, match="not before it"):
        VerificationPlan(guests=(first, second))
    assert VerificationPlan(guests=(second, first))
    with pytest.raises(UsageError, match="twice"):
        VerificationPlan(guests=(second, second))
    with pytest.raises(UsageError):
        VerificationPlan(guests=())


def test_an_application_file_becomes_a_plan(tmp_path: Path) -> None:
    """Every field arrives; what is not said has the default of the command line."""
    path = tmp_path / "a.toml"
    path.write_text(
        '[[guest]]\nvm = "db"\nprobes = ["postgres"]\nmemory_mib = 2048\n'
        '[[guest]]\npoint = "2026"\nname = "web"\nafter = ["db"]\nprobes = ["http:80/"]\n'
        'scripts = ["true => ok"]\nrto = "5min"\nrpo = "1d"\nhash_share = 0.1\n'
        'disk_interface = "pvscsi"\ntimeout = "90s"\n'
    )
    database, web = read_application(path).guests
    assert (database.point, database.name) == ("latest:db", "db")
    assert database.boot == BootOptions(memory_mib=2048)
    assert (web.point, web.name, web.after) == ("2026", "web", ("db",))
    assert (web.rto, web.rpo) == (timedelta(minutes=5), timedelta(days=1))
    assert web.boot is not None and web.boot.deadline_s == 90.0
    assert web.scripts[0].command == "true" and web.hash_share == 0.1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "guest"),
        ("x = [", "a.toml"),
        ('[[guest]]\nprobes = ["tcp:1"]', "either vm or point"),
        ('[[guest]]\nvm = "a"\npoint = "b"\nprobes = ["tcp:1"]', "either vm or point"),
        ('[[guest]]\nvm = "a"\nprobes = []', "probes"),
        ('[[guest]]\nvm = "a"\nprobes = ["nonsense"]', "not a probe"),
        ('[[guest]]\nvm = "a"\nprobes = ["tcp:1"]\nsurprise = 1', "surprise"),
        ('[[guest]]\nvm = "a"\nprobes = ["tcp:1"]\nrto = "soon"', "not a duration"),
        ('[[guest]]\nvm = "a"\nprobes = ["tcp:1"]\nafter = ["b"]', "not before it"),
        ("\udcff", "a.toml"),
    ],
)
def test_an_application_file_that_is_wrong_says_where(text: str, says: str, tmp_path: Path) -> None:
    """Exit code 2 and the place, before anything starts."""
    path = tmp_path / "a.toml"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UsageError, match=says):
        read_application(path)
