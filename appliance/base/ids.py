"""Identifiers as types, so that one cannot be passed for another."""

from __future__ import annotations

import re
import secrets
from datetime import datetime
from typing import NewType

from appliance.base.errors import UsageError

RecoveryPointId = NewType("RecoveryPointId", str)
RunId = NewType("RunId", str)
Digest = NewType("Digest", bytes)
"""Keyed BLAKE3-256 of a chunk or node: 32 bytes. Text forms are called `digest_hex`."""

_ID_TEXT = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{12}")


def new_run_id(now: datetime) -> RunId:
    """Return a globally unique id that sorts by time: `20261120T031500Z-4f0c…` (12 hex digits)."""
    return RunId(f"{now:%Y%m%dT%H%M%SZ}-{secrets.token_hex(6)}")


def point_id_of_run(run_id: RunId) -> RecoveryPointId:
    """A run makes at most one recovery point, so the point is named after it."""
    return RecoveryPointId(run_id)


def parse_point_id(text: str) -> RecoveryPointId:
    """Accept only what `new_run_id` makes, so that an id can never be a path. Raises UsageError."""
    if not _ID_TEXT.fullmatch(text):
        raise UsageError(f"not a recovery point id: {text!r}")
    return RecoveryPointId(text)
