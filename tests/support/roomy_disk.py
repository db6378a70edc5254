"""A disk with room, whatever this machine's is like: its warnings are no part of other promises."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.jobs import session_space

_TIB = 1 << 40


@pytest.fixture(autouse=True)
def roomy_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """For code in this process; import it into a module to have it for all of its tests."""

    def space(_folder: Path) -> tuple[int, int]:
        return _TIB, _TIB

    monkeypatch.setattr(session_space, "_space", space)
