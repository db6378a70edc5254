"""`holdfast`: the command line. Each group of commands is a module with an `add` function.

Modules of the product are imported by the command that needs them, so that a short command stays
short. Exit code: 0 success, 1 failed, 2 usage, 3 finished with warnings.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence

from appliance.base.errors import ApplianceError, CancelledError, StorageError, UsageError
from appliance.base.heap import keep_freed_memory
from appliance.base.run_context import CancelToken
from appliance.base.version import __version__
from appliance.cli import (
    appliance_commands,
    approval_commands,
    backup_commands,
    certificate_commands,
    export_commands,
    host_commands,
    instant_commands,
    job_commands,
    lab_commands,
    notify_commands,
    operation_commands,
    point_commands,
    repo_commands,
    restore_commands,
    run_commands,
    serve_command,
    verify_commands,
    vm_commands,
)
from appliance.cli.options import common_options
from appliance.cli.output import ExitCode, note, show_error
from appliance.cli.remote import run_command

_GROUPS = (
    repo_commands,
    host_commands,
    vm_commands,
    backup_commands,
    certificate_commands,
    point_commands,
    restore_commands,
    instant_commands,
    job_commands,
    run_commands,
    operation_commands,
    notify_commands,
    approval_commands,
    serve_command,
    export_commands,
    verify_commands,
    appliance_commands,
    lab_commands,
)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="holdfast", description="Agentless backup and instant recovery for virtual machines."
    )
    parser.add_argument("--version", action="version", version=f"holdfast {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    common = common_options()
    for group in _GROUPS:
        group.add(commands, common)
    return parser


# numpy's linear algebra would start a thread per core, which spin; nothing here uses it.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def main(argv: Sequence[str] | None = None) -> int:
    _open_standard_streams()
    args = build_parser().parse_args(argv)
    keep_freed_memory()
    args.cancel = _cancel_on_signals()
    try:
        return _run(args)
    except BrokenPipeError:  # the reader of stdout has gone, as `| head` does
        _drop_stdout()
    except OSError as error:  # stdout cannot be written
        _drop_stdout()
        show_error(None, _storage_error(error))
    return ExitCode.FAILED


def _run(args: argparse.Namespace) -> int:
    """Raises OSError: standard output cannot be written."""
    try:
        _check_text(args)
        return run_command(args)
    except UsageError as error:
        show_error(args, error)
        return ExitCode.USAGE
    except CancelledError:
        note("holdfast: cancelled; nothing was committed")
        return ExitCode.FAILED
    except ApplianceError as error:
        show_error(args, error)
        return ExitCode.FAILED
    except BrokenPipeError:
        raise
    except OSError as error:
        show_error(args, _storage_error(error))
        return ExitCode.FAILED


def _check_text(args: argparse.Namespace) -> None:
    """Names of VMs, hosts and jobs are text; only paths may be any bytes. Raises UsageError."""
    for value in vars(args).values():
        for word in value if isinstance(value, list) else [value]:
            if isinstance(word, str) and word != word.encode(errors="ignore").decode():
                raise UsageError(f"{word!r} is not UTF-8")


def _storage_error(error: OSError) -> StorageError:
    where = f"{error.filename}: " if error.filename is not None else ""
    return StorageError(f"{where}{error.strerror or error}")


def _drop_stdout() -> None:
    """What is left in its buffer goes nowhere; else Python would complain at the end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _open_standard_streams() -> None:
    """Of a caller that has closed them: the next file opened would get their number, and what other
    programs say, or Python, would end up in it."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            fd = os.open(os.devnull, os.O_RDWR)  # the lowest that is free
            if fd != number:
                os.dup2(fd, number)
                os.close(fd)
            os.set_inheritable(number, True)
            setattr(sys, name, os.fdopen(number, "r" if name == "stdin" else "w"))


def _cancel_on_signals() -> CancelToken:
    """The first Ctrl-C or SIGTERM asks for an orderly end, the second ends at once."""
    cancel = CancelToken()

    def on_signal(number: int, _frame: object) -> None:
        if cancel.cancelled:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        cancel.cancel()

    signal.signal(signal.SIGINT, on_signal)
    signal.signal(signal.SIGTERM, on_signal)
    return cancel


if __name__ == "__main__":
    sys.exit(main())
