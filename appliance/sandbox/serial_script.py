"""A command typed on the guest's serial console, and the line that must answer it.

Written `COMMAND => REGEX`. It needs somebody on the serial line who listens: a shell that is logged
in by itself, or a program of the guest's own. What is typed comes from the operator; what comes
back is matched and shown, never run.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from appliance.base.clock import Clock
from appliance.base.errors import UsageError
from appliance.base.run_context import CancelToken
from appliance.sandbox.console import LineCursor
from appliance.sandbox.machine import Machine
from appliance.sandbox.probes import parse_regex

_ARROW = " => "
_COMMAND_CHARACTERS_MAX = 1024
_SLICE_S = 0.5
_NEVER = re.compile("(?!)")


@dataclass(frozen=True, slots=True)
class SerialScript:
    command: str
    expected: re.Pattern[str]

    @property
    def text(self) -> str:
        return f"{self.command}{_ARROW}{self.expected.pattern}"

    def run(
        self, machine: Machine, timeout_s: float, cancel: CancelToken, clock: Clock
    ) -> str | None:
        """Return what matched in a line that came after the command; None: none did in time.

        The line that echoes the command itself does not count.

        Raises: CancelledError, SandboxError: the machine is gone.
        """
        cursor = LineCursor()
        machine.console.search(_NEVER, cursor)  # only what comes from now on
        machine.send_line(self.command)
        end_s = clock.monotonic_s() + timeout_s
        while True:
            cancel.check()
            while match := machine.console.wait_for(self.expected, _SLICE_S, cursor):
                if not match.string.rstrip().endswith(self.command):
                    return match[0]
            if clock.monotonic_s() >= end_s or not machine.running:
                return None


def parse_script(text: str) -> SerialScript:
    """Raises UsageError."""
    command, arrow, pattern = text.partition(_ARROW)
    if not arrow or not 1 <= len(command) <= _COMMAND_CHARACTERS_MAX or not command.isprintable():
        raise UsageError(f"not a script: {text!r} (write COMMAND => REGEX)")
    return SerialScript(command, parse_regex(pattern, f"script {text!r}"))
