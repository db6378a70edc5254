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
from appliance.sandbox.echo import Echo, EchoOfCommand, shown
from appliance.sandbox.machine import Machine
from appliance.sandbox.probes import parse_regex

_ARROW = " => "
_COMMAND_CHARACTERS_MAX = 1024
_SLICE_S = 0.5
_ECHO_S = 5.0  # within which an echo that has begun goes on
_NEVER, _ANY = re.compile("(?!)"), re.compile("")


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
        """Return what matched in a line that came after the command, as a terminal shows it;
        None: none did in time.

        What echoes the command itself does not count, however the terminal breaks it.

        Raises: CancelledError, SandboxError: the machine is gone.
        """
        cursor = LineCursor()
        machine.console.search(_NEVER, cursor)  # only what comes from now on
        machine.send_line(self.command)
        echo = EchoOfCommand(self.command)
        answer: str | None = None
        answered_s = 0.0
        end_s = clock.monotonic_s() + timeout_s
        while True:
            cancel.check()
            line = machine.console.wait_for(_ANY, _SLICE_S, cursor)
            now_s = clock.monotonic_s()
            seen = Echo.NONE if line is None else echo.look(line.string)
            if seen is Echo.ENDS:
                answer = None
            elif line and answer is None and (match := self.expected.search(shown(line.string))):
                answer, answered_s = match[0], now_s
            is_sure = seen is Echo.NONE and (line or now_s - answered_s > _ECHO_S)
            if answer is not None and is_sure:
                return answer
            if now_s >= end_s or not (line or machine.running):
                return answer


def parse_script(text: str) -> SerialScript:
    """Raises UsageError."""
    command, arrow, pattern = text.partition(_ARROW)
    if not arrow or not 1 <= len(command) <= _COMMAND_CHARACTERS_MAX or not command.isprintable():
        raise UsageError(f"not a script: {text!r} (write COMMAND => REGEX)")
    return SerialScript(command, parse_regex(pattern, f"script {text!r}"))
