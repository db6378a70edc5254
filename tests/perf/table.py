"""The result of a run: rows of medians and ratios, as a Markdown table or as JSON.

Pure: no clock, no files. A value is either samples (the median counts) or the reason why there are
none. A ratio above a goal of the kind `at least`, or below one of the kind `at most`, reaches it.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("samples without a value")

    @property
    def median(self) -> float:
        return statistics.median(self.values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    reason: str


Value = Samples | Missing


class Ratio(Enum):
    """What the ratio column divides."""

    PEER_BY_OURS = "peer / holdfast"  # times: how many times as fast we are
    OURS_BY_PEER = "holdfast / peer"  # rates: the same; sizes and costs: how much of the peer's
    OURS = "holdfast"  # a goal in absolute terms


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    limit: float
    at_most: bool = False

    def reached(self, ratio: float) -> bool:
        return ratio <= self.limit if self.at_most else ratio >= self.limit

    def __str__(self) -> str:
        return f"{'≤' if self.at_most else '≥'} {self.limit:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    section: str
    measure: str
    unit: str
    ours: Value
    peer: str = ""
    theirs: Value | None = None
    divide: Ratio = Ratio.PEER_BY_OURS
    goal: Goal | None = None

    @property
    def ratio(self) -> float | None:
        """None where a side is missing or the divisor is 0."""
        if not isinstance(self.ours, Samples):
            return None
        if self.divide is Ratio.OURS:
            return self.ours.median
        if not isinstance(self.theirs, Samples):
            return None
        above, below = self.theirs.median, self.ours.median
        if self.divide is Ratio.OURS_BY_PEER:
            above, below = below, above
        return above / below if below else None

    @property
    def reached(self) -> bool | None:
        if self.goal is None or self.ratio is None:
            return None
        return self.goal.reached(self.ratio)


_HEADINGS = (
    "section",
    "measure",
    "unit",
    "holdfast",
    "peer",
    "peer's figure",
    "ratio",
    "goal",
    "reached",
)


def markdown(rows: Sequence[Row]) -> str:
    """The table, then the reason for every figure that is not there."""
    lines = [_line(_HEADINGS), _line("---" for _ in _HEADINGS)]
    lines += [_line(_cells(row)) for row in rows]
    reasons = dict.fromkeys(_reasons(rows))
    if reasons:
        lines += ["", "Not measured:", *(f"- {reason}" for reason in reasons)]
    return "\n".join(lines) + "\n"


def document(rows: Sequence[Row]) -> list[dict[str, object]]:
    """The rows for JSON, every sample included."""
    return [
        {
            "section": row.section,
            "measure": row.measure,
            "unit": row.unit,
            "holdfast": _json_value(row.ours),
            "peer": row.peer or None,
            "peer_value": _json_value(row.theirs),
            "ratio_is": row.divide.value,
            "ratio": row.ratio,
            "goal": str(row.goal) if row.goal else None,
            "reached": row.reached,
        }
        for row in rows
    ]


def figure(value: float) -> str:
    """Three or four significant digits, thousands set apart by a space."""
    if abs(value) >= 1000:
        return f"{value:,.0f}".replace(",", " ")
    return f"{value:.3g}"


def _cells(row: Row) -> Iterable[str]:
    yield row.section
    yield row.measure
    yield row.unit
    yield _cell(row.ours)
    yield row.peer or "–"
    yield _cell(row.theirs)
    yield "–" if row.ratio is None or row.divide is Ratio.OURS else f"{row.ratio:.2f}"
    yield str(row.goal) if row.goal else "–"
    yield {True: "yes", False: "no", None: "–"}[row.reached]


def _cell(value: Value | None) -> str:
    if value is None:
        return "–"
    return figure(value.median) if isinstance(value, Samples) else "not measured"


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"


def _reasons(rows: Sequence[Row]) -> Iterable[str]:
    for row in rows:
        if isinstance(row.ours, Missing):
            yield f"{row.section}, holdfast: {row.ours.reason}"
        if isinstance(row.theirs, Missing):
            yield f"{row.section}, {row.peer}: {row.theirs.reason}"


def _json_value(value: Value | None) -> object:
    if value is None:
        return None
    if isinstance(value, Missing):
        return {"not_measured": value.reason}
    return {"median": value.median, "samples": list(value.values)}
