"""The daemon's sign of life: systemd restarts it when neither API nor catalog moves any more.

A beat is only sent once the event loop of the API has done something and the catalog has answered,
so a deadlock in either is found. Thread model: the daemon's main thread.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from appliance.base.service_notify import notify, watchdog_interval_s
from appliance.exports.loop_thread import LoopThread


class Heartbeat:
    """Does nothing where systemd asks for none."""

    def __init__(self, loop: LoopThread, probe: Callable[[], object]) -> None:
        self._loop = loop
        self._probe = probe
        self._every_s = watchdog_interval_s()
        self._last_s = time.monotonic()

    def beat(self) -> None:
        """Call it often; blocks as long as what it asks does not answer."""
        now_s = time.monotonic()
        if self._every_s is None or now_s - self._last_s < self._every_s:
            return
        self._loop.call(asyncio.sleep(0))
        self._probe()
        notify("WATCHDOG=1")
        self._last_s = now_s
