"""What a selection means is asked of the hosts once in a while, however it is answered."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pytest

from appliance.base.errors import SourceError
from appliance.catalog.job import VmSelection
from appliance.jobs.runners.site import OpenedSources
from appliance.service.selection_preview import KEPT_S, SelectionPreview
from appliance.sources.vm_identity import PointNames
from tests.support.job_world import MovedClock


def test_a_host_that_is_away_is_not_asked_at_every_change_of_the_form() -> None:
    """Each time may take half a minute, in which the worker waits that other pages need."""
    clock = MovedClock(datetime(2026, 11, 21, 12, tzinfo=UTC))
    asked = 0

    @contextmanager
    def away(_: Sequence[str]) -> Iterator[OpenedSources]:
        nonlocal asked
        asked += 1
        clock.set(clock.now() + timedelta(seconds=40))
        raise SourceError("no answer")
        yield OpenedSources(sources=(), failures=())

    preview = SelectionPreview(clock, away, lambda: PointNames(()))
    for name in ("w", "we", "web"):
        with pytest.raises(SourceError, match="no answer"):
            preview.meant(VmSelection(names=(name,)))
    assert asked == 1
    clock.set(clock.now() + timedelta(seconds=KEPT_S + 1))
    with pytest.raises(SourceError):
        preview.meant(VmSelection(everything=True))
    assert asked == 2
