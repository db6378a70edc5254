"""Options that every subcommand takes, and how a repository is opened from them."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from appliance.base.errors import UsageError
from appliance.base.secret import Secret

if TYPE_CHECKING:
    from appliance.repository.repository import Repository

DEFAULT_HOME = "/var/lib/holdfast"
_PASSPHRASE_LIMIT_BYTES = 4096


def common_options() -> argparse.ArgumentParser:
    """A parent parser: accepted after any subcommand."""
    parser = argparse.ArgumentParser(add_help=False)
    group = parser.add_argument_group("common options")
    group.add_argument("--json", action="store_true", help="print one JSON document on stdout")
    group.add_argument("--home", type=Path, help=f"state folder (default {DEFAULT_HOME})")
    group.add_argument("--repo", type=Path, help="repository folder (default HOME/repository)")
    group.add_argument("--passphrase-file", type=Path, help="file with the passphrase")
    group.add_argument("--recovery-key-file", type=Path, help="file with the recovery key")
    group.add_argument(
        "--appliance", metavar="URL", help="do it at an appliance elsewhere, through its API"
    )
    group.add_argument("--token-file", type=Path, metavar="FILE", help="with its API token")
    group.add_argument(
        "--appliance-fingerprint",
        metavar="FP",
        help="SHA-256 of its certificate (default: the system's authorities decide)",
    )
    group.add_argument("--quiet", action="store_true", help="no progress on stderr")
    return parser


def home_path(args: argparse.Namespace) -> Path:
    return args.home or Path(os.environ.get("HOLDFAST_HOME") or DEFAULT_HOME)


def repository_path(args: argparse.Namespace) -> Path:
    if args.repo:
        return Path(args.repo)
    from_environment = os.environ.get("HOLDFAST_REPO")
    return Path(from_environment) if from_environment else home_path(args) / "repository"


def read_secret_file(path: Path) -> Secret:
    """The first line of a file, without its line end. Raises UsageError."""
    try:
        with path.open("rb") as file:
            return read_secret_line(file, str(path))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error


def read_secret_line(stream: BinaryIO, name: str) -> Secret:
    """The first line of a stream, without its line end. Raises UsageError, OSError."""
    line = stream.readline(_PASSPHRASE_LIMIT_BYTES).rstrip(b"\r\n")
    if not line:
        raise UsageError(f"{name}: the first line is empty")
    return Secret(line)


def passphrase(args: argparse.Namespace) -> Secret | None:
    if args.passphrase_file:
        return read_secret_file(args.passphrase_file)
    from_environment = os.environb.get(b"HOLDFAST_PASSPHRASE")
    return Secret(from_environment) if from_environment else None


def recovery_key(args: argparse.Namespace) -> Secret | None:
    if not args.recovery_key_file:
        return None
    from appliance.repository.recovery_key import parse_recovery_key

    return parse_recovery_key(
        read_secret_file(args.recovery_key_file).reveal().decode("ascii", "replace")
    )


def open_repository(args: argparse.Namespace, *, cache_bytes: int | None = None) -> Repository:
    """Raises what `Repository.open` raises."""
    from appliance.repository.chunk_cache import DEFAULT_CACHE_BYTES
    from appliance.repository.repository import Repository, RepositoryOptions

    options = RepositoryOptions(
        workers=max(2, os.cpu_count() or 2), cache_bytes=cache_bytes or DEFAULT_CACHE_BYTES
    )
    return Repository.open(
        repository_path(args),
        passphrase=passphrase(args),
        recovery_key=recovery_key(args),
        options=options,
    )
