"""The stages of a verification: their names, their verdicts, and what they say together.

Pure values. A stage is timed and ends in exactly one of passed, failed, skipped; what did not pass
carries a typed reason. The verdict over a guest follows from its stages alone, and one rule in it
is the point of the whole: a guest that was switched on has passed only when something in it has
answered. Being on for a while proves nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from appliance.base.reasons import Reason


class StageName(StrEnum):
    """In the order in which they run."""

    HASHED = "hashed"
    FILE_SYSTEMS = "file-systems"
    PUBLISHED = "published"
    REGISTERED = "registered"  # in the sandbox: QEMU has accepted the machine
    POWERED_ON = "powered-on"
    READY = "ready"  # heartbeat of the tools, or what the guest says on its serial line
    PROBED = "probed"  # over the network
    SCRIPT = "script"  # commands inside the guest
    SCREENSHOT = "screenshot"
    CLEAN_UP = "clean-up"


class Verdict(StrEnum):
    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"


_SIGNS_OF_LIFE = frozenset({StageName.READY, StageName.PROBED, StageName.SCRIPT})

NOT_ASKED = Reason(
    "verify.not-asked", "this stage was not asked for", "ask for it, if wanted", warning=False
)
STAGE_BEFORE_FAILED = Reason(
    "verify.stage-before-failed",
    "a stage that this one needs did not pass",
    "see that stage",
    warning=False,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StageResult:
    stage: StageName
    verdict: Verdict
    seconds: float = 0.0
    detail: str = ""  # may quote the guest: escape it where it is shown
    reason: Reason | None = None  # None only when passed

    def __post_init__(self) -> None:
        if (self.reason is None) != (self.verdict is Verdict.PASSED):
            raise ValueError(f"{self.stage}: {self.verdict} with reason {self.reason}")

    def as_json(self) -> dict[str, object]:
        return {
            "stage": self.stage.value,
            "verdict": self.verdict.value,
            "seconds": round(self.seconds, 3),
            "detail": self.detail,
            "reason": self.reason.as_json() if self.reason else None,
        }


def passed(stage: StageName, seconds: float, detail: str = "") -> StageResult:
    return StageResult(stage=stage, verdict=Verdict.PASSED, seconds=seconds, detail=detail)


def failed(stage: StageName, seconds: float, reason: Reason, detail: str = "") -> StageResult:
    return StageResult(
        stage=stage, verdict=Verdict.FAILED, seconds=seconds, detail=detail, reason=reason
    )


def skipped(stage: StageName, reason: Reason = NOT_ASKED, detail: str = "") -> StageResult:
    return StageResult(stage=stage, verdict=Verdict.SKIPPED, detail=detail, reason=reason)


def in_order(stages: Sequence[StageResult]) -> tuple[StageResult, ...]:
    """Every stage once, in the order of `StageName`; one that is missing was not asked for."""
    by_name = {result.stage: result for result in stages}
    return tuple(by_name.get(name) or skipped(name) for name in StageName)


def verdict_of(stages: Sequence[StageResult]) -> Verdict:
    """Failed when a stage failed, or when a guest was switched on and nothing in it answered."""
    verdicts = {result.stage: result.verdict for result in stages}
    if Verdict.FAILED in verdicts.values():
        return Verdict.FAILED
    if verdicts.get(StageName.POWERED_ON) is Verdict.PASSED and not any(
        verdicts.get(stage) is Verdict.PASSED for stage in _SIGNS_OF_LIFE
    ):
        return Verdict.FAILED
    proofs = (StageName.HASHED, StageName.FILE_SYSTEMS, *_SIGNS_OF_LIFE)
    if any(verdicts.get(stage) is Verdict.PASSED for stage in proofs):
        return Verdict.PASSED
    return Verdict.SKIPPED


def verdict_of_all(verdicts: Sequence[Verdict]) -> Verdict:
    """Of a run over several guests: one that failed fails it."""
    for verdict in (Verdict.FAILED, Verdict.PASSED):
        if verdict in verdicts:
            return verdict
    return Verdict.SKIPPED
