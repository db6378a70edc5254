"""What the command line shows: one JSON document or text on stdout, everything else on stderr."""

from __future__ import annotations

import argparse
import json
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import IntEnum
from typing import Any

from appliance.base.error_document import error_document, next_step
from appliance.base.errors import ApplianceError
from appliance.base.reasons import Reason
from appliance.base.run_context import Progress, ProgressSnapshot
from appliance.base.units import format_duration, format_rate, format_size

_TERMINAL_EVERY_S = 0.5
_LOG_EVERY_S = 10.0


class ExitCode(IntEnum):
    SUCCESS = 0
    FAILED = 1
    USAGE = 2
    WARNING = 3


def show(args: argparse.Namespace, document: Any, text: Callable[[], str]) -> None:
    """Print `document` for --json, else what `text` returns."""
    if args.json:
        _print(json.dumps(document, indent=1, default=str))
    else:
        shown = text()
        if shown:
            _print(plain(shown))


def _print(text: str) -> None:
    """To stdout. Raises BrokenPipeError; OSError, which names it: a full disk."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, "standard output") from error


def plain(text: str) -> str:
    """Names come from hypervisors and files: what would steer a terminal is shown as `\\x1b`."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or char in "\n\t" else ascii(char)[1:-1] for char in text
    )


def table(rows: Sequence[Sequence[str]], header: Sequence[str]) -> str:
    """Columns padded to their widest cell; numbers are the caller's to format."""
    lines = [header, *([plain(cell).replace("\n", "\\n") for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def described(document: Mapping[str, Any]) -> str:
    """Plain fields, one a line, for what has no table of its own."""
    width = max((len(name) for name in document), default=0)
    return "\n".join(
        f"{name.ljust(width)}  {value}"
        for name, value in document.items()
        if not isinstance(value, list | dict) and value is not None
    )


def note(text: str) -> None:
    print(plain(text), file=sys.stderr, flush=True)


def note_reasons(reasons: Sequence[Reason]) -> None:
    for reason in dict.fromkeys(reasons):
        mark = "warning" if reason.warning else "note"
        note(f"{mark} [{reason.code}] {reason.text}; next step: {reason.next_step}")


def show_error(args: argparse.Namespace | None, error: ApplianceError) -> None:
    if args is not None and getattr(args, "json", False):
        _print(json.dumps({"error": error_document(error)}, indent=1))
    note(f"holdfast: [{error.code}] {error}\n  {next_step(error)}")
    for more in getattr(error, "__notes__", ()):
        note(f"  also: {more}")


@contextmanager
def progress_shown(args: argparse.Namespace, progress: Progress) -> Iterator[None]:
    """Show `progress` on stderr until the block ends: a live line, or a line now and then."""
    if args.quiet:
        yield
        return
    live = sys.stderr.isatty()
    stop = threading.Event()

    def follow() -> None:
        while not stop.wait(_TERMINAL_EVERY_S if live else _LOG_EVERY_S):
            line = progress_line(progress.snapshot())
            print(f"\r\033[K{line}" if live else line, end="" if live else "\n", file=sys.stderr)
            sys.stderr.flush()

    thread = threading.Thread(target=follow, name="progress")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        if live:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def progress_line(now: ProgressSnapshot) -> str:
    parts = [format_size(now.done_bytes)]
    if now.total_bytes:
        share = min(now.done_bytes / now.total_bytes, 1.0)
        parts = [f"{share:4.0%} of {format_size(now.total_bytes)}"]
    parts.append(format_rate(now.bytes_per_s))
    if now.eta_s is not None and now.total_bytes:
        parts.append(f"{format_duration(max(now.eta_s, 0))} left")
    if now.bottleneck is not None:
        parts.append(f"bottleneck: {now.bottleneck}")
    return ", ".join(parts)
