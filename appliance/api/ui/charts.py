"""Charts as SVG, made here: no script, no style attribute, text for those who do not see them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta

from markupsafe import Markup, escape

_WIDTH, _HEIGHT = 640, 120
_CELL, _GAP = 14, 3
_BAR_STEP_MAX = 24.0  # few values make no wall


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    label: str
    value: float
    text: str  # the value, for people


def bars(title: str, values: Sequence[Bar]) -> Markup:
    """Upright bars from zero; empty without values."""
    if not values:
        return Markup("")
    most = max(bar.value for bar in values) or 1.0
    step = min(_BAR_STEP_MAX, _WIDTH / len(values))
    parts = [_head(title, _WIDTH, _HEIGHT)]
    for number, bar in enumerate(values):
        height = max(1.0, (_HEIGHT - 4) * bar.value / most)
        parts.append(
            Markup(
                '<rect class="bar" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}">'
            ).format(number * step + 1, _HEIGHT - height, max(1.0, step - 2), height)
        )
        parts.append(Markup("<title>{}: {}</title></rect>").format(bar.label, bar.text))
    return Markup("").join([*parts, Markup("</svg>")])


def calendar(title: str, counts: dict[date, int], last: date, weeks: int = 26) -> Markup:
    """One square a day, the last week on the right; darker with more on that day."""
    first = last - timedelta(days=last.weekday() + 7 * (weeks - 1))
    width, height = weeks * (_CELL + _GAP), 7 * (_CELL + _GAP)
    parts = [_head(title, width, height)]
    day = first
    while day <= last:
        week, weekday = divmod((day - first).days, 7)
        level = min(counts.get(day, 0), 4)
        parts.append(
            Markup('<rect class="day day-{}" x="{}" y="{}" width="{}" height="{}">').format(
                level, week * (_CELL + _GAP), weekday * (_CELL + _GAP), _CELL, _CELL
            )
        )
        parts.append(
            Markup("<title>{}: {}</title></rect>").format(day.isoformat(), counts.get(day, 0))
        )
        day += timedelta(days=1)
    return Markup("").join([*parts, Markup("</svg>")])


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    name: str
    marks: tuple[tuple[float, str], ...]  # place from 0 to 1, and what it is


def lanes(title: str, rows: Sequence[Lane], first: str, last: str) -> Markup:
    """Marks along one line of time, a row for each kind; empty without rows."""
    if not rows:
        return Markup("")
    left, lane, width = 76, 26, 420
    height = len(rows) * lane + 22
    parts = [_head(title, width, height)]
    for number, row in enumerate(rows):
        top = number * lane
        parts.append(Markup('<text class="axis" x="0" y="{}">{}</text>').format(top + 18, row.name))
        parts.append(
            Markup('<line class="rule" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(
                left, top + lane - 1, width, top + lane - 1
            )
        )
        for place, text in row.marks:
            x = left + place * (width - left - 5)
            parts.append(
                Markup(
                    '<rect class="mark mark-{}" x="{:.1f}" y="{}" width="4" height="16" rx="1">'
                    "<title>{}</title></rect>"
                ).format(number % 6, x, top + 5, text)
            )
    for x, anchor, text in ((left, "start", first), (width, "end", last)):
        parts.append(
            Markup('<text class="axis" x="{}" y="{}" text-anchor="{}">{}</text>').format(
                x, height - 5, anchor, text
            )
        )
    return Markup("").join([*parts, Markup("</svg>")])


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    at_s: float
    value: float


def area(title: str, samples: Sequence[Sample], most_text: str) -> Markup:
    """A filled line over time from zero; empty with fewer than two samples."""
    if len(samples) < 2:
        return Markup("")
    first, last = samples[0].at_s, samples[-1].at_s
    span, most = max(last - first, 1e-9), max(sample.value for sample in samples) or 1.0
    points = [
        (_WIDTH * (each.at_s - first) / span, _HEIGHT - (_HEIGHT - 18) * each.value / most)
        for each in samples
    ]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return Markup("").join(
        [
            _head(title, _WIDTH, _HEIGHT),
            Markup('<polygon class="area" points="0,{h} {line} {w},{h}"/>').format(
                h=_HEIGHT, w=_WIDTH, line=line
            ),
            Markup('<polyline class="line" points="{}"/>').format(line),
            Markup('<text class="axis" x="2" y="11">{}</text>').format(most_text),
            Markup("</svg>"),
        ]
    )


def _head(title: str, width: float, height: float) -> Markup:
    return Markup(
        '<svg class="chart" role="img" aria-label="{}" viewBox="0 0 {} {}"'
        ' preserveAspectRatio="xMinYMid" xmlns="http://www.w3.org/2000/svg">'
    ).format(escape(title), width, height)
