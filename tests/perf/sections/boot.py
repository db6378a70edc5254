"""Time to readiness of the debian guest, from its raw file and from the repository over NBD."""

from __future__ import annotations

from tests.perf.context import Bench
from tests.perf.programs import NotMeasuredError
from tests.perf.table import Row

NAME = "boot"


def run(bench: Bench) -> list[Row]:
    raise NotMeasuredError("the lab's guests are not there yet")
