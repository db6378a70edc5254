"""Verdicts from what the sandbox reports of a boot. Pure but for reading the screenshot.

A guest is ready by what it says (serial line), probed by what it answers (network). When it is
neither, its own last words say why, if it had any.
"""

from __future__ import annotations

from collections.abc import Sequence

from appliance.base.errors import StorageError
from appliance.base.reasons import Reason
from appliance.jobs.verification_stages import (
    NOT_ASKED,
    StageName,
    StageResult,
    failed,
    passed,
    skipped,
)
from appliance.sandbox.boot import BootReport, ProbeResult
from appliance.sandbox.errors import PictureError
from appliance.sandbox.last_words import KERNEL_PANIC, find_last_words
from appliance.sandbox.picture import Screen, ScreenJudgement, judge_picture

_RECENT_LINES = 60

NO_HEARTBEAT = Reason(
    "verify.no-heartbeat",
    "the sandbox has no tools to ask and no serial probe was given: the network decides",
    "add a probe of the serial line, if wanted",
    warning=False,
)
NOT_READY = Reason(
    "verify.not-ready",
    "the guest did not say in time what it says when it is ready",
    "look at the screenshot and the serial log; give it more time, or the right probe",
)
PROBE_FAILED = Reason(
    "verify.probe-failed",
    "the guest did not answer a probe over the network in time",
    "look at the screenshot; check the port, and what the service needs to start",
)
SCRIPT_FAILED = Reason(
    "verify.script-failed",
    "a command inside the guest did not give the expected answer in time",
    "read the serial log: somebody must listen on the serial line",
)
SCREEN_MISSING = Reason(
    "verify.screen-missing",
    "the machine ended before its screen could be seen",
    "read the serial log",
)
SCREEN_BLANK = Reason(
    "verify.screen-blank",
    "the screen shows nothing",
    "look at it: a guest that works shows at least a prompt",
)
SCREEN_CRASHED = Reason(
    "verify.screen-crashed",
    "the screen shows that the system has crashed",
    "look at the screenshot; try another disk interface or an older recovery point",
)


def judge_boot(report: BootReport, address: str) -> list[StageResult]:
    """Registered, powered on, ready, probed, script; `address` is the guest's."""
    said = [probe for probe in report.probes if not probe.over_network]
    asked = [probe for probe in report.probes if probe.over_network and probe.reason is None]
    impossible = [probe.reason for probe in report.probes if probe.reason is not None]
    words = find_last_words((*report.console_lines, *report.screen_lines))
    power_on_s = report.power_on_s - report.registered_s
    return [
        passed(StageName.REGISTERED, report.registered_s, f"accelerator {report.accelerator}"),
        passed(StageName.POWERED_ON, power_on_s, address),
        _probed(StageName.READY, said, NO_HEARTBEAT, words, NOT_READY),
        _probed(
            StageName.PROBED, asked, impossible[0] if impossible else NOT_ASKED, words, PROBE_FAILED
        ),
        _scripts(report),
    ]


def judge_screen(report: BootReport) -> tuple[StageResult, ScreenJudgement | None]:
    """Raises StorageError: the screenshot cannot be read."""
    stage, seconds = StageName.SCREENSHOT, report.evidence_seconds
    if report.screenshot_path is None:
        return failed(stage, seconds, SCREEN_MISSING), None
    try:
        png = report.screenshot_path.read_bytes()
    except OSError as error:
        raise StorageError(f"{report.screenshot_path}: {error.strerror}") from error
    recent = (*report.console_lines[-_RECENT_LINES:], *report.screen_lines)
    return judge_shown(png, seconds, recent)


def judge_shown(
    png: bytes, seconds: float, recent: Sequence[str] = ()
) -> tuple[StageResult, ScreenJudgement | None]:
    """Judge a screenshot, and the lines that the guest has written last, as far as known."""
    stage = StageName.SCREENSHOT
    try:
        judgement = judge_picture(png)
    except PictureError as error:
        return failed(stage, seconds, SCREEN_MISSING, str(error)), None
    words = find_last_words(recent)
    if words is not None and words[0] is KERNEL_PANIC:
        return failed(stage, seconds, KERNEL_PANIC, words[1]), judgement
    if judgement.screen is Screen.CRASHED:
        return failed(stage, seconds, SCREEN_CRASHED, judgement.text), judgement
    if judgement.screen is Screen.BLANK:
        return failed(stage, seconds, SCREEN_BLANK, judgement.text), judgement
    return passed(stage, seconds, judgement.text), judgement


def _probed(
    stage: StageName,
    probes: Sequence[ProbeResult],
    without: Reason,
    words: tuple[Reason, str] | None,
    failure: Reason,
) -> StageResult:
    if not probes:
        return skipped(stage, without)
    seconds = max((probe.seconds or 0.0) for probe in probes)
    detail = "; ".join(f"{probe.probe}: {probe.detail}" for probe in probes if not probe.ok)
    if not detail:
        return passed(stage, seconds, "; ".join(probe.probe for probe in probes))
    if words is not None:
        return failed(stage, seconds, words[0], f"{words[1]}; {detail}")
    return failed(stage, seconds, failure, detail)


def _scripts(report: BootReport) -> StageResult:
    if not report.scripts:
        return skipped(StageName.SCRIPT, NOT_ASKED)
    seconds = sum(script.seconds for script in report.scripts)
    for script in report.scripts:
        if not script.ok:
            detail = f"{script.script}: {script.detail}"
            return failed(StageName.SCRIPT, seconds, SCRIPT_FAILED, detail)
    return passed(StageName.SCRIPT, seconds, "; ".join(s.script for s in report.scripts))
