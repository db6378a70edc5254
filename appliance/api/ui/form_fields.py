"""Form fields as a document, and back: how flat fields of a page say what the API takes as JSON.

    policy.retention.keep_daily=14     {"policy": {"retention": {"keep_daily": "14"}}}
    job.select.names[]=a\\nb            {"job": {"select": {"names": ["a", "b"]}}}
    policy.bandwidth.0.limit=10M/s     {"policy": {"bandwidth": [{"limit": "10M/s"}]}}

What is empty is not said, but for a list that `_list` names: boxes of which none is ticked. Text
stays text; the model makes numbers and switches of it. Names that begin with an underscore are the
form's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from appliance.api.errors import BodyError

_FIELDS_MAX = 2000
_DEPTH_MAX = 8
_TO_THE_LETTER = frozenset({"password", "old", "new", "secret"})  # a space may be part of it


def document_of(fields: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Raises BodyError: fields that contradict each other."""
    root: dict[str, Any] = {}
    for number, (name, value) in enumerate(fields):
        if number == _FIELDS_MAX:
            raise BodyError(f"more than {_FIELDS_MAX} fields")
        if name == "_list" and value.endswith("[]"):
            _put(root, value, "")
        elif not name.startswith("_") and value.strip():
            _put(root, name, value)
    found = _with_lists(root)
    return found if isinstance(found, dict) else {}


def fields_of(document: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """The flat fields of a JSON document; `document_of` makes the same document of them."""
    found: dict[str, str] = {}
    for key, value in document.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found |= fields_of(value, f"{name}.")
        elif isinstance(value, list | tuple):
            if any(isinstance(each, Mapping) for each in value):
                for number, each in enumerate(value):
                    found |= fields_of(each, f"{name}.{number}.")
            elif value:
                found[f"{name}[]"] = "\n".join(map(str, value))
        elif value is not None:
            found[name] = str(value).lower() if isinstance(value, bool) else str(value)
    return found


def _put(root: dict[str, Any], name: str, value: str) -> None:
    is_list = name.endswith("[]")
    parts = name.removesuffix("[]").split(".")
    if len(parts) > _DEPTH_MAX:
        raise BodyError(f"{name[:80]!r} is nested too deeply")
    here = root
    for part in parts[:-1]:
        here = here.setdefault(part, {})
        if not isinstance(here, dict):
            raise BodyError(f"{name[:80]!r} contradicts another field")
    last = parts[-1]
    if not is_list:
        here[last] = value if name in _TO_THE_LETTER else value.strip()
        return
    lines = here.setdefault(last, [])
    if not isinstance(lines, list):
        raise BodyError(f"{name[:80]!r} contradicts another field")
    lines += [line.strip() for line in value.splitlines() if line.strip()]


def _with_lists(value: Any) -> Any:
    """Objects whose keys are all numbers are lists."""
    if not isinstance(value, dict):
        return value
    if value and all(key.isascii() and key.isdigit() for key in value):
        return [_with_lists(value[key]) for key in sorted(value, key=int)]
    return {key: _with_lists(inner) for key, inner in value.items()}
