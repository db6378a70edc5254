"""Asking at the terminal."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from appliance.base.errors import CancelledError


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C or Ctrl-D at a prompt ends the command at once. Raises CancelledError."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    except (KeyboardInterrupt, EOFError):
        raise CancelledError("cancelled") from None
    finally:
        signal.signal(signal.SIGINT, before)
