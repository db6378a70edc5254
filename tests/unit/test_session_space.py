"""Room for what guests of recovery sessions write: said in time, and kept."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from appliance.jobs.session_space import (
    NoRoomForSessionsError,
    refuse_without_room,
    space_reasons,
)

GIB = 1 << 30


def disk(monkeypatch: pytest.MonkeyPatch, *, free: int, total: int = 100 * GIB) -> None:
    usage = SimpleNamespace(total=total, free=free, used=total - free)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)


@pytest.mark.parametrize(
    ("free_gib", "codes"),
    [(50, []), (20, []), (19, ["session.space-low"]), (9, ["session.space-urgent"])],
)
def test_room_that_runs_out_is_said_in_two_stages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_gib: int, codes: list[str]
) -> None:
    """With how much is left, and what to do."""
    disk(monkeypatch, free=free_gib * GIB)
    found = space_reasons(tmp_path)
    assert [reason.code for reason in found] == codes
    assert all(reason.warning and "GiB" in reason.text for reason in found)


def test_nothing_starts_when_only_the_reserve_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also before the folder of the sessions is there."""
    disk(monkeypatch, free=GIB)
    with pytest.raises(NoRoomForSessionsError):
        refuse_without_room(tmp_path / "home" / "sessions", GIB)
    refuse_without_room(tmp_path / "home" / "sessions", GIB - 1)
