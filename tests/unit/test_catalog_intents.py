"""The journal of what we make on hypervisors, and which runs are alive. Processes are real ones."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from appliance.base.clock import SystemClock
from appliance.base.ids import RunId, new_run_id
from appliance.base.secret import Secret
from appliance.catalog.catalog import Catalog
from appliance.catalog.errors import HostInUseError, HostNotFoundError, RunNotFoundError
from appliance.catalog.hosts import HostKind, HostRecord
from appliance.catalog.intents import Intent, IntentId, IntentKind
from appliance.catalog.run_locks import CleaningBusyError
from appliance.catalog.runs import RunOutcome

ROOT = Path(__file__).parents[2]

PROCESS = """
import sys
from pathlib import Path
from appliance.base.ids import RunId
from appliance.catalog.catalog import Catalog
from appliance.catalog.intents import IntentKind
run_id = RunId(sys.argv[2])
with Catalog.open(Path(sys.argv[1])) as catalog, catalog.run_locks.hold(run_id):
    catalog.runs.begin(run_id, kind="backup", vm="web", host="vc")
    made = dict(host="vc", run_id=run_id, target_moref="vm-7")
    first = catalog.intents.record(IntentKind.SNAPSHOT, name=f"holdfast-{run_id}", **made)
    catalog.intents.complete(first, "snapshot-9")
    catalog.intents.record(IntentKind.HOT_ADDED_DISK, name="[ds] web/web.vmdk", **made)
    print("recorded", flush=True)
    sys.stdin.read()
"""


def run_id() -> RunId:
    return new_run_id(SystemClock().now())


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    with Catalog.open(tmp_path) as opened:
        for name in ("vc", "other"):
            record = HostRecord(
                name=name,
                kind=HostKind.VSPHERE,
                address="127.0.0.1",
                port=443,
                user="u",
                fingerprint="AA",
                server_id=name,
                added_at=datetime.now(UTC),
            )
            opened.hosts.add(record, Secret.of_text("p"))
        yield opened


@contextlib.contextmanager
def backup(folder: Path, name: RunId) -> Iterator[subprocess.Popen[str]]:
    """A process that has made a snapshot, is about to attach a disk, and waits."""
    child = subprocess.Popen(
        [sys.executable, "-c", PROCESS, str(folder), name],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "recorded\n"
            yield child
        finally:
            child.kill()


def record(catalog: Catalog, run: RunId, *, host: str = "vc", name: str = "x") -> IntentId:
    return catalog.intents.record(
        IntentKind.SNAPSHOT, host=host, run_id=run, target_moref="vm-1", name=name
    )


def test_an_intent_is_open_from_its_record_to_its_close(catalog: Catalog) -> None:
    """With what is needed to find it, before and after its moref is known."""
    run = run_id()
    number = catalog.intents.record(
        IntentKind.LEASE, host="vc", run_id=run, target_moref="vm-1", name="n", detail="d" * 5000
    )
    (intent,) = catalog.intents.open_intents()
    assert intent == Intent(
        id=number,
        kind=IntentKind.LEASE,
        host="vc",
        run_id=run,
        target_moref="vm-1",
        name="n",
        detail="d" * 5000,
        recorded_at=intent.recorded_at,
        made_moref=None,
    )
    catalog.intents.complete(number, "session-3")
    assert [i.made_moref for i in catalog.intents.open_intents(run_id=run)] == ["session-3"]
    catalog.intents.close(number)
    catalog.intents.close(number)
    assert catalog.intents.open_intents() == []


def test_open_intents_are_listed_newest_first_by_host_and_run(catalog: Catalog) -> None:
    """What was made last is removed first."""
    one, two = run_id(), run_id()
    a, b, c = (
        record(catalog, one),
        record(catalog, two, host="other"),
        record(catalog, one),
    )
    listed = [intent.id for intent in catalog.intents.open_intents()]
    assert listed == [c, b, a]
    assert [intent.id for intent in catalog.intents.open_intents(run_id=one)] == [c, a]
    assert [intent.id for intent in catalog.intents.open_intents(host="other")] == [b]


def test_nothing_may_be_recorded_for_a_host_that_is_not_registered(catalog: Catalog) -> None:
    """It could not be removed later."""
    with pytest.raises(HostNotFoundError):
        record(catalog, run_id(), host="nobody")


def test_intents_of_a_living_run_are_not_abandoned_and_of_a_killed_one_are(
    catalog: Catalog, tmp_path: Path
) -> None:
    """After kill -9 the journal names both things it may have left, the newest first."""
    run = run_id()
    with backup(tmp_path, run) as child:
        assert catalog.run_locks.alive() == {run}
        assert len(catalog.intents.open_intents()) == 2
        assert catalog.intents.abandoned() == []
        assert catalog.runs.close_interrupted() == []
        child.kill()
        child.wait()
        left = catalog.intents.abandoned(host="vc")
    assert [(i.kind, i.target_moref, i.made_moref) for i in left] == [
        (IntentKind.HOT_ADDED_DISK, "vm-7", None),
        (IntentKind.SNAPSHOT, "vm-7", "snapshot-9"),
    ]
    assert catalog.intents.abandoned(host="other") == []
    assert catalog.runs.close_interrupted() == [run]
    ended = catalog.runs.get(run)
    assert (ended.outcome, ended.error_code) == (RunOutcome.FAILED, "run.interrupted")
    assert not list((tmp_path / "runs").glob("*.run"))


def test_a_run_in_this_process_is_alive_too(catalog: Catalog) -> None:
    """flock belongs to the opening of a file, not to the process."""
    run = run_id()
    with catalog.run_locks.hold(run):
        number = record(catalog, run)
        assert catalog.intents.abandoned() == []
    assert [intent.id for intent in catalog.intents.abandoned()] == [number]


def test_one_process_at_a_time_removes_debris(catalog: Catalog, tmp_path: Path) -> None:
    """A second one is told so at once; after the first, it may."""
    with Catalog.open(tmp_path) as other:
        first, second = catalog.run_locks.cleaning(), other.run_locks.cleaning()
        with first, pytest.raises(CleaningBusyError):
            second.__enter__()
        with other.run_locks.cleaning():
            pass


def test_a_host_with_open_intents_is_removed_only_by_force(catalog: Catalog) -> None:
    """Else nobody could log in to remove what is there."""
    record(catalog, run_id())
    with pytest.raises(HostInUseError):
        catalog.hosts.remove("vc")
    assert catalog.hosts.get("vc")
    catalog.hosts.remove("vc", forget_intents=True)
    assert catalog.intents.open_intents() == []


def test_a_run_has_one_end(catalog: Catalog) -> None:
    """The first end counts; the result comes back as it was given."""
    one, two = run_id(), run_id()
    catalog.runs.begin(one, kind="backup", vm="web", host="vc")
    catalog.runs.begin(two, kind="restore", vm="db")
    assert catalog.runs.get(one).ended_at is None
    catalog.runs.end(one, RunOutcome.WARNING, result={"read_bytes": 7})
    catalog.runs.end(one, RunOutcome.FAILED, error_code="late")
    ended = catalog.runs.get(one)
    assert (ended.outcome, ended.error_code, ended.result) == (
        RunOutcome.WARNING,
        None,
        {"read_bytes": 7},
    )
    assert {run.run_id for run in catalog.runs.list()} == {one, two}
    assert [run.run_id for run in catalog.runs.list(vm="db")] == [two]
    assert len(catalog.runs.list(limit=1)) == 1
    with pytest.raises(RunNotFoundError):
        catalog.runs.get(RunId("nothing"))
