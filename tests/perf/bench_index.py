"""10 million synthetic chunks: index insert, look-up, GC mark and rebuild rates, bytes per entry.

The one section that needs interfaces inside the repository instead of the command line.
"""

from __future__ import annotations

from tests.perf.context import Bench
from tests.perf.table import Missing, Row

NAME = "index"


def run(bench: Bench) -> list[Row]:
    reason = "the benchmark of the index is not written yet"
    return [
        Row(
            section=NAME,
            measure="10 million chunks",
            unit="entries/s",
            ours=Missing(reason=reason),
        )
    ]
