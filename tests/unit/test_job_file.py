"""Job files: what is written can be read, what is wrong is said, what differs is shown."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.base.consistency import GuestLogs
from appliance.base.errors import UsageError
from appliance.base.secret import Secret
from appliance.catalog.catalog import Catalog
from appliance.catalog.errors import PolicyNotFoundError, SecretDamagedError
from appliance.catalog.hosts import HostKind, HostRecord
from appliance.catalog.job import (
    BackupJob,
    CheckJob,
    Exclusion,
    GcJob,
    Job,
    VerificationJob,
    VmSelection,
)
from appliance.catalog.policy import (
    BandwidthRule,
    Ladder,
    Policy,
    Retention,
    Retries,
    Script,
)
from appliance.catalog.schedule import WEEKDAYS, Schedule
from appliance.catalog.vm_checks import Group, VmChecks, Where
from appliance.service.job_book import JobBook
from appliance.service.job_changes import EntryAction, SavedState, compare
from appliance.service.job_file import JobFile, host_entry, parse_job_file, write_job_file
from appliance.sources.hyperv_node import NodeAddress, as_text

FINGERPRINT = ":".join(["AB"] * 32)

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,20}", fullmatch=True)
patterns = st.lists(texts, max_size=3).map(tuple)
some_patterns = st.lists(texts, min_size=1, max_size=3).map(tuple)
counts = st.integers(0, 100)
times = st.sampled_from(["00:00", "22:30", "02:15"])
windows = st.sampled_from(["20:00-06:00", "mon-fri 07:00-19:00", "sat,sun 00:00-24:00"])
schedules = st.one_of(
    st.builds(Schedule, at=st.tuples(times), days=st.just(WEEKDAYS[:3])),
    st.builds(Schedule, every_minutes=st.integers(1, 1440)),
    st.builds(Schedule, at=st.tuples(times), days_of_month=st.just((1, "last"))),
)
scripts = st.builds(
    Script,
    argv=st.tuples(st.just("/bin/echo"), texts.filter(lambda text: "\0" not in text)),
    timeout_s=st.integers(1, 100),
)
policies = st.builds(
    Policy,
    name=names,
    time_zone=st.sampled_from(["UTC", "Europe/Berlin"]),
    schedule=st.none() | schedules,
    windows=st.lists(windows, max_size=2).map(tuple),
    retention=st.builds(Retention, keep_last=counts, keep_daily=counts, keep_yearly=counts),
    consistency=st.just(Ladder(least="file-system")),
    guest_logs=st.sampled_from(GuestLogs),
    before=st.none() | scripts,
    after=st.none() | scripts,
    bandwidth=st.lists(
        st.builds(BandwidthRule, limit=st.sampled_from(["1MiB/s", "5G"]), window=windows),
        max_size=2,
    ).map(tuple),
    retries=st.builds(Retries, attempts=st.integers(0, 20)),
    cbt_audit_percent=st.floats(0, 100),
    evidence_days=st.integers(1, 36_500),
)
jobs = st.one_of(
    st.builds(
        BackupJob,
        name=names,
        select=st.builds(
            VmSelection,
            names=some_patterns,
            tags=patterns,
            exclude=st.builds(Exclusion, names=patterns, folders=patterns),
        ),
    ),
    st.builds(CheckJob, name=names, read_data=st.booleans(), enabled=st.booleans()),
    st.builds(
        VerificationJob,
        name=names,
        where=st.just(Where.BOTH),
        probes=patterns,
        hash_share=st.floats(0, 1),
        vms=st.lists(st.builds(VmChecks, names=some_patterns, probes=patterns), max_size=2).map(
            tuple
        ),
        groups=st.lists(
            st.builds(
                Group,
                name=names,
                order=st.lists(texts, min_size=2, max_size=4, unique=True).map(tuple),
            ),
            max_size=1,
        ).map(tuple),
    ),
    st.builds(GcJob, name=names, wait_minutes=st.integers(0, 100)),
)


@settings(deadline=None)
@given(
    st.lists(policies, max_size=3, unique_by=lambda policy: policy.name),
    st.lists(jobs, max_size=4, unique_by=lambda job: job.name),
)
def test_what_is_written_reads_as_the_same(found: list[Policy], saved: list[Job]) -> None:
    """Whatever stands in the names, patterns and arguments."""
    file = JobFile(folder=Path(), hosts=(), policies=tuple(found), jobs=tuple(saved))
    read = parse_job_file(write_job_file(file), Path())
    assert read == file
    state = SavedState(
        hosts={}, policies={p.name: p for p in found}, jobs={j.name: j for j in saved}
    )
    assert compare(read, state).changed == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[policy.a]\nschedul = 1", "policy.a.schedul"),
        ("[policy.a]\nschedule = { at = ['25:00'] }", "25:00"),
        ("[policy.a]\nschedule = { at = ['22:00'], every_minutes = 5 }", "not both"),
        ("[policy.a]\nschedule = {}", "give at"),
        ("[policy.a]\ntime_zone = 'Mars/Olympus'", "time zone"),
        ("[policy.a]\ntime_zone = '../../etc/passwd'", "time zone"),
        ("[policy.a]\nwindows = ['evening']", "not a window"),
        ("[policy.a]\nretention = { keep_daily = -1 }", "keep_daily"),
        ("[policy.a]\nbefore = { argv = ['echo'] }", "absolute path"),
        ("[policy.a]\nbefore = { argv = 'echo; rm' }", "before.argv"),
        ("[policy.a]\nbandwidth = [{ limit = '1B/s' }]", "64 KiB"),
        ("[policy.a]\nconsistency = { wanted = 'crash', least = 'application' }", "less than"),
        ("[policy.a]\nconsistency = { wanted = 'offline' }", "cannot be asked"),
        ("[policy.'a/b']", "a/b"),
        ("[job.a]\nkind = 'dance'", "dance"),
        ("[job.a]\nkind = 'backup'", "select"),
        ("[job.a]\nkind = 'backup'\nselect = {}", "everything = true"),
        ("[job.a]\nkind = 'backup'\nselect = { everything = true, names = ['a'] }", "nothing"),
        ("[job.a]\nname = 'b'\nkind = 'gc'", "leave out the field name"),
        ("[jobs.a]\nkind = 'gc'", "only host, policy and job"),
        ("job = 3", "[job.NAME]"),
        ("[host.a]\naddress = 'h'\nuser = 'u'\nfingerprint = 'AB:CD'", "SHA-256"),
        (f"[host.a]\naddress = 'h/p'\nuser = 'u'\nfingerprint = '{FINGERPRINT}'", "not an address"),
        (
            f"[host.a]\naddress = 'h'\nuser = 'u'\npassword = 'x'\nfingerprint = '{FINGERPRINT}'",
            "host.a.password",
        ),
        ("[[[", "Invalid"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(text: str, said: str) -> None:
    """In words that name the field and what it wants."""
    with pytest.raises(UsageError, match=f"(?i){re.escape(said)}"):
        parse_job_file(text, Path())


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    with Catalog.open(tmp_path) as opened:
        yield opened


FILE = """
[policy.nightly]
schedule = { at = ["22:00"] }
retention = { keep_daily = 14 }

[job.all]
kind = "backup"
policy = "nightly"
select = { everything = true }
"""


def test_applying_twice_changes_nothing(tmp_path: Path, catalog: Catalog) -> None:
    """The first time adds, the second finds nothing that differs."""
    book = JobBook(catalog, tmp_path)
    file = parse_job_file(FILE, tmp_path)
    first = book.apply(file)
    assert [(e.section, e.name, e.action) for e in first.changed] == [
        ("policy", "nightly", EntryAction.ADD),
        ("job", "all", EntryAction.ADD),
    ]
    assert book.apply(file).changed == ()


def test_a_dry_run_shows_each_field_and_changes_nothing(tmp_path: Path, catalog: Catalog) -> None:
    """A field that the file leaves out goes back to its default; what is not named stays."""
    book = JobBook(catalog, tmp_path)
    book.apply(parse_job_file(FILE + "[job.other]\nkind = 'gc'\n", tmp_path))
    before = write_job_file(book.as_file())
    changed = FILE.replace("22:00", "23:00").replace("keep_daily = 14", "keep_weekly = 8")
    changes = book.changes(parse_job_file(changed, tmp_path))
    (entry,) = changes.changed
    assert [(field.field, field.old, field.new) for field in entry.fields] == [
        ("schedule.at", ["22:00"], ["23:00"]),
        ("retention.keep_daily", 14, 0),
        ("retention.keep_weekly", 0, 8),
    ]
    assert changes.not_in_file == ("job.other",)
    assert write_job_file(book.as_file()) == before


def test_a_file_is_applied_whole_or_not_at_all(tmp_path: Path, catalog: Catalog) -> None:
    """A job with a policy or host that nobody knows keeps the others from being saved."""
    book = JobBook(catalog, tmp_path)
    for bad in (
        "[job.b]\nkind = 'gc'\npolicy = 'nowhere'\n",
        "[job.b]\nkind = 'retention'\n",
        "[job.b]\nkind = 'verification'\nprobes = ['icmp']\n",
        "[job.b]\nkind = 'verification'\nwhere = 'both'\nhost = 'nowhere'\n",
        "[job.b]\nkind = 'backup'\nselect = { everything = true, hosts = ['nowhere'] }\n",
    ):
        file = parse_job_file(FILE + bad, tmp_path)
        for attempt in (book.changes, book.apply):
            with pytest.raises((UsageError, PolicyNotFoundError)):
                attempt(file)
    assert catalog.jobs.list() == []
    assert catalog.jobs.policies() == []


def test_a_password_is_compared_and_never_shown(tmp_path: Path, catalog: Catalog) -> None:
    """A file with another one is a change, without either of them."""
    record = HostRecord(
        name="vc1",
        kind=HostKind.VSPHERE,
        address="vc1.example.org",
        port=443,
        user="u",
        fingerprint=FINGERPRINT,
        server_id="id",
        added_at=datetime(2026, 1, 1, tzinfo=UTC),
    )
    catalog.hosts.add(record, Secret.of_text("old-password"))
    (tmp_path / "pw").write_text("new-password\n")
    book = JobBook(catalog, tmp_path)
    text = (
        "[host.vc1]\naddress = 'vc1.example.org'\nuser = 'u'\npassword_file = 'pw'\n"
        f"fingerprint = '{FINGERPRINT.replace(':', '').lower()}'\n"
    )
    changes = book.changes(parse_job_file(text, tmp_path))
    (entry,) = changes.changed
    assert [field.field for field in entry.fields] == ["password"]
    shown = json.dumps(changes.as_json()) + repr(changes)
    assert "new-password" not in shown and "old-password" not in shown
    (tmp_path / "pw").write_text("old-password\n")
    assert book.changes(parse_job_file(text, tmp_path)).changed == ()


def test_after_a_lost_catalog_the_jobs_come_from_the_copy(tmp_path: Path, catalog: Catalog) -> None:
    """Once; a job that was removed does not come back."""
    book = JobBook(catalog, tmp_path)
    book.apply(parse_job_file(FILE + "[job.gone]\nkind = 'gc'\n", tmp_path))
    book.remove("gone")
    assert "password" not in (tmp_path / "jobs-copy.toml").read_text()
    assert tomllib.loads((tmp_path / "jobs-copy.toml").read_text())["job"].keys() == {"all"}
    assert book.restore_lost() == 0
    catalog.close()
    for path in tmp_path.glob("catalog.sqlite*"):
        path.unlink()
    with Catalog.open(tmp_path) as anew:
        fresh = JobBook(anew, tmp_path)
        assert fresh.restore_lost() == 1
        assert anew.jobs.get("all").policy.retention.keep_daily == 14
        assert fresh.restore_lost() == 0
        fresh.remove("all")
        assert [policy.name for policy in anew.jobs.policies()] == ["nightly"]


def test_a_policy_goes_with_its_own_job_only(tmp_path: Path, catalog: Catalog) -> None:
    """One that only bears the job's name was made for something else."""
    book = JobBook(catalog, tmp_path)
    own = "[policy.own]\n[job.own]\nkind = 'gc'\npolicy = 'own'\n"
    other = "[policy.gold]\n[policy.nightly]\n[job.nightly]\nkind = 'gc'\npolicy = 'gold'\n"
    book.apply(parse_job_file(own + other, tmp_path))
    book.remove("own")
    book.remove("nightly")
    assert [policy.name for policy in catalog.jobs.policies()] == ["gold", "nightly"]


NODES = as_text(
    [NodeAddress(address="hv2.example", port=5986, smb_port=446, fingerprint=":".join(["AB"] * 32))]
)


def hyperv_record(**settings: str) -> HostRecord:
    return HostRecord(
        name="hv1",
        kind=HostKind.HYPERV,
        address="hv1.example",
        port=5985 if settings.get("scheme") == "http" else 5986,
        user="EXAMPLE\\backup",
        fingerprint="" if settings.get("scheme") == "http" else FINGERPRINT,
        server_id="hyperv/hv1.example",
        added_at=datetime(2026, 11, 21, tzinfo=UTC),
        settings=settings,
    )


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"login": "kerberos", "scheme": "https", "smb_port": "445", "smb_protection": "encrypted"},
        {"login": "ntlm", "scheme": "http", "smb_port": "4450", "smb_protection": "signed"},
        {"login": "ntlm", "scheme": "https", "smb_port": "445", "nodes": NODES},
    ],
)
def test_a_hyperv_host_is_written_and_read_as_the_same(settings: dict[str, str]) -> None:
    """With its own default port, and what the login needs."""
    entry = host_entry(hyperv_record(**settings))
    text = write_job_file(JobFile(folder=Path(), hosts=(entry,), policies=(), jobs=()))
    [found] = parse_job_file(text, Path()).hosts
    assert found == entry and found.type == "hyperv"
    assert {key: found.login_settings[key] for key in settings} == settings
    [short] = parse_job_file(re.sub(r":598[56]", "", text), Path()).hosts
    assert short == entry


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('auth = "basic"', "are of Hyper-V hosts"),
        ('scheme = "http"', "are of Hyper-V hosts"),
        ('type = "hyperv"\nsmb_port = 0', "smb_port"),
        ('type = "hyperv"\nfingerprint = ""', "fingerprint"),
    ],
)
def test_what_does_not_fit_a_host_is_said(line: str, said: str) -> None:
    """Before anybody logs in."""
    pin = "" if "fingerprint" in line else f'fingerprint = "{FINGERPRINT}"'
    text = f'[host.h]\naddress = "h"\nuser = "u"\n{pin}\n{line}\n'
    with pytest.raises(UsageError, match=said):
        parse_job_file(text, Path())


def test_the_password_of_a_hyperv_host_is_bound_to_its_kind_of_login(catalog: Catalog) -> None:
    """Who can write to the catalog cannot make it travel in another way."""
    record = hyperv_record(login="ntlm", scheme="https", smb_port="445", smb_protection="signed")
    catalog.hosts.add(record, Secret.of_text("correct"))
    assert catalog.hosts.password(record).reveal() == b"correct"
    for change in (
        {"scheme": "http"},
        {"login": "basic"},
        {"smb_port": "4450"},
        {"nodes": NODES},
    ):
        with pytest.raises(SecretDamagedError):
            catalog.hosts.password(replace(record, settings={**record.settings, **change}))
