"""Jobs of the Hyper-V management service: started by a script, asked about until they are over.

A call only starts work and returns at once, so that a broken connection never leaves it unknown
whether it goes on. Jobs vanish some minutes after their end: one that is not found any more is
judged by what it was to make.

Thread model: functions; they block. Source: Msvm_ConcreteJob; design notes section 3.
"""

from __future__ import annotations

from typing import Final

from hyperv.errors import CheckpointError
from hyperv.host_session import HostSession
from hyperv.patience import Patience
from hyperv.script_types import JobState

JOB_DEADLINE_S: Final = 1800.0
_OVER = 7
_COMPLETED = frozenset({7, 32768})


def wait_for_job(
    host: HostSession,
    job_id: str,
    what: str,
    patience: Patience,
    *,
    deadline_s: float = JOB_DEADLINE_S,
) -> JobState | None:
    """Return how the job ended; None: there was no job, or nobody knows it any more.

    Raises: CheckpointError: it failed; DeadlineError, CancelledError, HypervError.
    """
    if not job_id:
        return None
    for _ in patience.looks(deadline_s, what):
        state = host.call("job_state", {"job_id": job_id}, JobState, patience=patience)
        if not state.found:
            return None
        if state.state in _COMPLETED:
            return state
        if state.state >= _OVER:
            words = state.error or state.description or "no reason given"
            raise CheckpointError(f"{what}: {words} (error {state.error_code})")
    raise AssertionError("looks ends with an error")
