"""Charts as SVG, made here: no script, no style attribute, text for those who do not see them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta

from markupsafe import Markup, escape

_WIDTH, _HEIGHT = 640, 120
_CELL, _GAP = 14, 3


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
    step = _WIDTH / len(values)
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


def _head(title: str, width: float, height: float) -> Markup:
    return Markup(
        '<svg class="chart" role="img" aria-label="{}" viewBox="0 0 {} {}"'
        ' preserveAspectRatio="xMinYMid" xmlns="http://www.w3.org/2000/svg">'
    ).format(escape(title), width, height)
