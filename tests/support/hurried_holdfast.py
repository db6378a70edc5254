"""The `holdfast` program under a clock that goes many times as fast: a minute passes in seconds.

Run as `python -m tests.support.hurried_holdfast WORDS`. All programs that get the same start
(`environment_from`) agree on the time. Only the wall clock is hurried: deadlines are as they were.
"""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime
from pathlib import Path

from appliance.base.clock import SystemClock
from appliance.cli.main import main
from tests.support.holdfast_program import environment

TIMES_AS_FAST = 20
_START = "HURRIED_SINCE"


def environment_from(home: Path, start: datetime) -> dict[str, str]:
    return environment(home) | {_START: start.isoformat()}


def _hurry(start: datetime) -> None:
    def now(_: SystemClock) -> datetime:
        return start + (datetime.now(UTC) - start) * TIMES_AS_FAST

    SystemClock.now = now  # type: ignore[method-assign]


if __name__ == "__main__":
    _hurry(datetime.fromisoformat(os.environ[_START]))
    sys.exit(main(sys.argv[1:]))
