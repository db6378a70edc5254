"""How long the space of the repository lasts, in words."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date

_FROM_DAYS = 3
_DAYS_MOST = 5 * 365


def forecast(free_bytes: int, stored: Mapping[date, int], today: date) -> str:
    """By the average of the days there are; the removal of old points is not counted."""
    if not stored:
        return "Nothing is stored yet."
    days_seen = (today - min(stored)).days + 1
    per_day = sum(stored.values()) / days_seen
    if days_seen < _FROM_DAYS or per_day < 1:
        return "Too few days are known for a forecast."
    days = int(free_bytes / per_day)
    if days > _DAYS_MOST:
        return "At the present rate it lasts for years."
    return f"At the present rate, and if nothing were removed, it is full in {days} days."
