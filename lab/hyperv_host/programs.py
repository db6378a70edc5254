"""What a command line starts on the practice host: a few words of cmd.exe, and PowerShell.

There is no Windows behind this, so what is not known is refused in the words of the program that
would have run it. PowerShell takes one thing: the product's bootstrap as an encoded command, with
a script on its standard input; everything else it cannot run (see `scripts`).

Thread model: the thread of the command.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable

from lab.hyperv_host.winrs_command import CommandLine, Pipes

PowerShell = Callable[[str, Pipes], int]  # the decoded command, its pipes; returns the exit code
_CMD_LINE_MAX = 8191
_PROCESS_LINE_MAX = 32767
_EXIT = re.compile(r"exit(?: /b)? (-?\d{1,9})")
_FLAGS = {"-noprofile", "-noninteractive", "-nologo", "-sta", "-mta"}
_VALUED = {"-executionpolicy", "-outputformat", "-inputformat"}


class Programs:
    def __init__(self, computer: str, powershell: PowerShell) -> None:
        self._computer = computer
        self._powershell = powershell

    def __call__(self, line: CommandLine, pipes: Pipes) -> int:
        limit = _PROCESS_LINE_MAX if line.direct else _CMD_LINE_MAX
        if len(line.text) > limit:
            return _say(pipes, "The command line is too long.")
        words = line.text.split()
        program = words[0].lower().removesuffix(".exe")
        if program.rpartition("\\")[2] == "powershell":
            return self._start_powershell(words[1:], pipes)
        match program, words[1:]:
            case "hostname", []:
                pipes.write("stdout", f"{self._computer}\r\n".encode())
                return 0
            case "echo", rest:
                pipes.write("stdout", (" ".join(rest) + "\r\n").encode())
                return 0
            case "sort", []:
                lines = sorted(pipes.read_all().decode("utf-8", "replace").splitlines())
                pipes.write("stdout", "".join(f"{one}\r\n" for one in lines).encode())
                return 0
        if leaving := _EXIT.fullmatch(line.text.lower()):
            return int(leaving[1])
        return _say(
            pipes,
            f"'{words[0]}' is not recognized as an internal or external command,\r\n"
            "operable program or batch file.",
        )

    def _start_powershell(self, words: list[str], pipes: Pipes) -> int:
        left = list(words)
        while left:
            word = left.pop(0).lower()
            if word in _FLAGS:
                continue
            if word in _VALUED and left:
                left.pop(0)
                continue
            if word in ("-encodedcommand", "-enc", "-e") and len(left) == 1:
                return self._decoded(left[0], pipes)
            return _say(pipes, f"The term '{word}' is not recognized: this host runs scripts only.")
        return _say(pipes, "PowerShell without a command would wait for one.")

    def _decoded(self, text: str, pipes: Pipes) -> int:
        try:
            command = base64.b64decode(text, validate=True).decode("utf-16-le")
        except (binascii.Error, UnicodeDecodeError):
            return _say(
                pipes,
                "Cannot process the command because the value specified with -EncodedCommand is"
                " not properly encoded. The value must be Base64 encoded.",
            )
        return self._powershell(command, pipes)


def _say(pipes: Pipes, text: str) -> int:
    pipes.write("stderr", f"{text}\r\n".encode())
    return 1
