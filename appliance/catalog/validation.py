"""What pydantic found wrong, in the words of the file or request that it is about."""

from __future__ import annotations

from pydantic import ValidationError

_MOST_SHOWN = 10


def describe(error: ValidationError, about: str = "") -> str:
    """One line per finding: `policy.gold.schedule.at: Value error, …`; values are not repeated."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    lines = []
    for item in found[:_MOST_SHOWN]:
        place = ".".join([about, *map(str, item["loc"])] if about else map(str, item["loc"]))
        message = item["msg"].removeprefix("Value error, ")
        lines.append(f"{place}: {message}" if place else message)
    if len(found) > _MOST_SHOWN:
        lines.append(f"and {len(found) - _MOST_SHOWN} more")
    return "; ".join(lines)
