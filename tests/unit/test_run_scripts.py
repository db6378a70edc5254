"""Scripts around a run: what they get, what is kept of them, and that they end."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from appliance.base.errors import CancelledError
from appliance.base.run_context import CancelToken
from appliance.catalog.job_runs import JobRun
from appliance.catalog.policy import Script
from appliance.catalog.runs import RunOutcome
from appliance.jobs.engine import RunOrder, RunReport
from appliance.jobs.run_scripts import OUTPUT_LIMIT_BYTES, ScriptError, run_script
from appliance.jobs.scheduler import run_now
from tests.support.job_world import PassingError, World, job_world

PYTHON = sys.executable


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with job_world(tmp_path) as opened:
        yield opened


def script(code: str, *arguments: str, timeout_s: int = 60) -> Script:
    return Script(argv=(PYTHON, "-c", code, *arguments), timeout_s=timeout_s)


def as_policy(found: Script) -> dict[str, object]:
    return found.model_dump(mode="json")


def test_a_script_gets_its_arguments_as_they_stand_and_facts_only() -> None:
    """No shell reads them, and nothing of our environment is passed on."""
    os.environ["HOLDFAST_PASSPHRASE"] = "secret"
    try:
        code = "import os, sys; print(sys.argv[1:], sorted(os.environ))"
        result = run_script(
            script(code, "$(id)", "; rm -rf /", "a b"), {"HOLDFAST_JOB": "all"}, CancelToken()
        )
    finally:
        del os.environ["HOLDFAST_PASSPHRASE"]
    assert result.succeeded
    assert "['$(id)', '; rm -rf /', 'a b']" in result.output
    assert "HOLDFAST_JOB" in result.output
    assert "PASSPHRASE" not in result.output


def test_of_a_chatty_script_the_end_is_kept() -> None:
    """A gigabyte of output costs 16 KiB."""
    code = "import sys\nfor n in range(30000): print('line', n, 'x' * 50)\nsys.exit(3)"
    result = run_script(script(code), {}, CancelToken())
    assert result.exit_code == 3
    assert len(result.output) <= OUTPUT_LIMIT_BYTES
    assert "line 29999" in result.output


def test_a_script_that_takes_too_long_is_killed_with_what_it_started(tmp_path: Path) -> None:
    """Also one that ignores being asked, and its child."""
    mark = tmp_path / "child"
    code = (
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = os.fork()\n"
        f"open({str(mark)!r}, 'a').write(f'{{os.getpid()}} ')\n"
        "time.sleep(600)\n"
    )
    result = run_script(script(code, timeout_s=1), {}, CancelToken())
    assert result.exit_code is None
    for pid in map(int, mark.read_text().split()):
        assert_gone(pid)


def test_a_cancelled_run_ends_its_script() -> None:
    """The one that cancels does not wait for it."""
    token = CancelToken()
    token.cancel()
    with pytest.raises(CancelledError):
        run_script(script("import time; time.sleep(600)"), {}, token)


def test_a_program_that_is_not_there_is_a_typed_error() -> None:
    """With the system's reason."""
    with pytest.raises(ScriptError, match="No such file"):
        run_script(Script(argv=("/no/such/program",)), {}, CancelToken())


def test_a_script_that_fails_before_the_run_keeps_it_from_beginning(world: World) -> None:
    """The runner is not called; the run failed and holds the script's output."""
    before = script("print('the database is not ready'); raise SystemExit(7)")
    world.save("all", policy={"before": as_policy(before), "retries": {"attempts": 0}})
    world.runner.ends = lambda order: pytest.fail("began")
    run = run_by_hand(world)
    assert (run.outcome, run.error_code) == (RunOutcome.FAILED, "run.script-failed")
    assert "the database is not ready" in run.result["scripts"]["before"]["output"]


def test_the_script_after_the_run_hears_how_it_ended(world: World) -> None:
    """Also of a failed one; its own failure is a warning."""
    after = script(
        "import os; print(os.environ['HOLDFAST_OUTCOME'], os.environ['HOLDFAST_ERROR_CODE'])"
    )
    world.save("all", policy={"after": as_policy(after), "retries": {"attempts": 0}})

    def fails(order: RunOrder) -> RunReport:
        raise PassingError("as planned")

    world.runner.ends = fails
    run = run_by_hand(world)
    assert run.error_code == "test.failed"
    assert run.result["scripts"]["after"]["output"] == "failed test.failed\n"

    broken = script("raise SystemExit(1)")
    world.save("other", policy={"after": as_policy(broken)})
    world.runner.ends = lambda order: RunReport(outcome=RunOutcome.SUCCESS)
    run = run_by_hand(world, "other")
    assert run.outcome is RunOutcome.WARNING
    assert [reason.code for reason in run.reasons] == ["script.after-failed"]


def test_the_script_after_the_run_is_run_when_somebody_cancels_it(world: World) -> None:
    """It undoes what the one before did: a database that was halted would stay so."""
    after = script("import os; print(os.environ['HOLDFAST_OUTCOME'])")
    world.save("all", policy={"after": as_policy(after)})

    def cancelled(order: RunOrder) -> RunReport:
        assert world.engine.cancel(order.run.run_id)
        raise CancelledError("as asked")

    world.runner.ends = cancelled
    run = run_by_hand(world)
    assert run.outcome is RunOutcome.CANCELLED
    assert run.result["scripts"]["after"]["output"] == "cancelled\n"


def test_a_stop_of_the_daemon_does_not_wait_for_the_script_of_a_cancelled_run(
    world: World,
) -> None:
    """It is ended with all that it started, and the run says so."""
    after = script("import time; time.sleep(600)")
    world.save("all", policy={"after": as_policy(after)})

    stop = threading.Thread(target=world.engine.stop)

    def cancelled(order: RunOrder) -> RunReport:
        assert world.engine.cancel(order.run.run_id)
        stop.start()
        raise CancelledError("as asked")

    world.runner.ends = cancelled
    run = run_by_hand(world)
    stop.join()
    assert run.outcome is RunOutcome.CANCELLED
    assert [reason.code for reason in run.reasons] == ["script.after-failed"]


def run_by_hand(world: World, job: str = "all") -> JobRun:
    run = run_now(world.catalog.jobs, world.catalog.job_runs, job, world.scheduler.wake)
    world.until(world.clock.now() + timedelta(minutes=1))
    assert world.engine.wait_idle(30)
    return world.catalog.job_runs.get(run.run_id)


def assert_gone(pid: int) -> None:
    """A killed grandchild is reaped by init, soon."""
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return
        if state == "Z":
            return
        time.sleep(0.05)
    raise AssertionError(f"process {pid} lives")
