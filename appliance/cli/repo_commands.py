"""`holdfast repo …`: create, figures, verify, reclaim, rebuild, keys."""

from __future__ import annotations

import argparse
from typing import Any

from appliance.base.units import format_size
from appliance.cli.options import (
    open_repository,
    passphrase,
    read_secret_file,
    recovery_key,
    repository_path,
)
from appliance.cli.output import ExitCode, note, show


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    group = commands.add_parser("repo", help="create and look after a repository")
    verbs = group.add_subparsers(metavar="VERB", required=True)

    init = verbs.add_parser("init", parents=[common], help="create an empty repository")
    init.add_argument(
        "--with-recovery-key",
        action="store_true",
        help="also make a recovery key and print it once",
    )
    init.set_defaults(run=run_init)

    stats = verbs.add_parser("stats", parents=[common], help="what is stored and what it takes")
    stats.set_defaults(run=run_stats)

    change = verbs.add_parser(
        "change-passphrase", parents=[common], help="new passphrase, no data rewritten"
    )
    change.add_argument("--new-passphrase-file", required=True, metavar="FILE")
    change.set_defaults(run=run_change_passphrase)


def run_init(args: argparse.Namespace) -> int:
    from appliance.base.errors import UsageError
    from appliance.repository.recovery_key import format_recovery_key, new_recovery_key
    from appliance.repository.repository import Repository

    secret = passphrase(args)
    if args.with_recovery_key and secret is None:
        raise UsageError(
            "--with-recovery-key is for an encrypted repository: give a passphrase too"
        )
    key = new_recovery_key() if args.with_recovery_key else None
    path = repository_path(args)
    config = Repository.create(path, passphrase=secret, recovery_key=key)
    document: dict[str, Any] = {
        "repository": str(path),
        "repository_id": config.repository_id,
        "encrypted": config.encrypted,
    }
    shown = f"created {'an encrypted' if config.encrypted else 'a'} repository at {path}"
    if key is not None:
        document["recovery_key"] = format_recovery_key(key)
        shown += (
            f"\nrecovery key, shown this once; keep it where the repository is not:\n"
            f"  {document['recovery_key']}"
        )
    show(args, document, lambda: shown)
    return ExitCode.SUCCESS


def run_stats(args: argparse.Namespace) -> int:
    from appliance.repository.stats import repository_stats

    with open_repository(args) as repository:
        stats = repository_stats(repository)

    def text() -> str:
        return "\n".join(
            (
                f"recovery points   {stats.point_count} of {stats.vm_count} VMs",
                f"disks             {format_size(stats.disk_bytes)} in all points",
                f"data referenced   {format_size(stats.referenced_bytes)} in all points",
                f"unique data       {format_size(stats.unique_bytes)}, {stats.chunk_count} chunks",
                f"stored            {format_size(stats.stored_bytes)} in {stats.pack_count} packs",
                f"deduplication     {stats.deduplication:.2f} x",
                f"compression       {stats.compression:.2f} x",
                f"index             {format_size(stats.index_bytes)}",
            )
        )

    show(args, stats.as_json(), text)
    return ExitCode.SUCCESS


def run_change_passphrase(args: argparse.Namespace) -> int:
    from pathlib import Path

    from appliance.repository.repository import Repository

    new = read_secret_file(Path(args.new_passphrase_file))
    Repository.change_passphrase(
        repository_path(args), new, passphrase=passphrase(args), recovery_key=recovery_key(args)
    )
    show(args, {"changed": True}, lambda: "")
    note("the passphrase was changed; the old one no longer opens the repository")
    return ExitCode.SUCCESS
