"""`holdfast repo …`: create, figures, verify, reclaim, rebuild, keys."""

from __future__ import annotations

import argparse
import os
from typing import Any

from appliance.base.errors import UsageError
from appliance.base.units import format_size
from appliance.cli import repo_delete
from appliance.cli.numbers import seconds
from appliance.cli.options import (
    open_repository,
    passphrase,
    read_secret_file,
    recovery_key,
    repository_path,
)
from appliance.cli.output import ExitCode, note, note_reasons, progress_shown, show


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

    check = verbs.add_parser("check", parents=[common], help="find damage and what it affects")
    check.add_argument("--read-data", action="store_true", help="read and prove every byte")
    check.set_defaults(run=run_check)

    collect = verbs.add_parser("gc", parents=[common], help="free what no recovery point needs")
    collect.add_argument("--dry-run", action="store_true", help="show the plan, change nothing")
    collect.add_argument(
        "--wait",
        type=seconds,
        default=0.0,
        metavar="SECONDS",
        help="how long to wait for backups that began before (default: leave it to the next gc)",
    )
    collect.set_defaults(run=run_gc)

    rebuild = verbs.add_parser(
        "rebuild-index", parents=[common], help="make the local index anew from the repository"
    )
    rebuild.add_argument(
        "--from-packs", action="store_true", help="also list packs that no index segment lists"
    )
    rebuild.set_defaults(run=run_rebuild_index)

    change = verbs.add_parser(
        "change-passphrase", parents=[common], help="new passphrase, no data rewritten"
    )
    change.add_argument("--new-passphrase-file", required=True, metavar="FILE")
    change.set_defaults(run=run_change_passphrase)

    repo_delete.add(verbs, common)


def run_init(args: argparse.Namespace) -> int:
    from appliance.repository.recovery_key import format_recovery_key, new_recovery_key
    from appliance.repository.repository import Repository

    secret = passphrase(args)
    if secret is None and "HOLDFAST_PASSPHRASE" in os.environ:
        raise UsageError("HOLDFAST_PASSPHRASE is empty: unset it for one that is not encrypted")
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


def run_check(args: argparse.Namespace) -> int:
    from appliance.base.run_context import Progress, RunContext
    from appliance.repository.verify import check

    context = RunContext(args.cancel, Progress())
    with open_repository(args) as repository, progress_shown(args, context.progress):
        report = check(repository, read_data=args.read_data, context=context)

    def text() -> str:
        lines = [
            f"{report.point_count} recovery points, {report.node_count} tree nodes, "
            f"{report.pack_count} packs in {report.seconds:.1f} s"
        ]
        if args.read_data:
            lines.append(f"{format_size(report.read_bytes)} in {report.record_count} records read")
        lines += [
            f"{'repaired' if damage.repaired else 'damaged'}: {damage.kind} {damage.name}: "
            f"{damage.reason}"
            for damage in report.damages
        ]
        lines += [
            f"affected: {disk.point_id} of {disk.vm}, disk {disk.disk}, "
            f"{len(disk.extents) + disk.more_extents} extents"
            for disk in report.affected
        ]
        lines.append("clean" if report.clean else "NOT clean")
        return "\n".join(lines)

    show(args, report.as_json(), text)
    if report.clean:
        return ExitCode.SUCCESS
    healed = not report.affected and all(damage.repaired for damage in report.damages)
    return ExitCode.WARNING if healed else ExitCode.FAILED


def run_gc(args: argparse.Namespace) -> int:
    from appliance.base.run_context import Progress, RunContext
    from appliance.repository.gc import GcOptions, collect_garbage, plan_gc

    context = RunContext(args.cancel, Progress())
    options = GcOptions(wait_s=args.wait)
    with open_repository(args) as repository:
        if args.dry_run:
            plan = plan_gc(repository, options, context)
            show(
                args,
                {"dry_run": True, "plan": plan.as_json()},
                lambda: (
                    f"would free {format_size(plan.freed_bytes)} of "
                    f"{format_size(plan.total_bytes)}: {len(plan.drop)} packs dropped, "
                    f"{len(plan.rewrite)} rewritten, {len(plan.unlisted)} of killed runs"
                ),
            )
            note_reasons(plan.reasons)
            return ExitCode.SUCCESS
        with progress_shown(args, context.progress):
            outcome = collect_garbage(repository, options, context)
    show(
        args,
        {"dry_run": False} | outcome.as_json(),
        lambda: (
            f"freed {format_size(outcome.freed_bytes)}: {outcome.dropped_packs} packs dropped, "
            f"{outcome.rewritten_packs} rewritten; {format_size(outcome.pending_bytes)} pending"
        ),
    )
    note_reasons(outcome.reasons)
    warned = any(reason.warning for reason in outcome.reasons)
    return ExitCode.WARNING if warned else ExitCode.SUCCESS


def run_rebuild_index(args: argparse.Namespace) -> int:
    from appliance.repository.rebuild import rebuild_index

    report = rebuild_index(
        repository_path(args),
        passphrase=passphrase(args),
        recovery_key=recovery_key(args),
        from_packs=args.from_packs,
    )
    show(
        args,
        report.as_json(),
        lambda: (
            f"{report.entry_count} entries of {report.pack_count} packs in {report.seconds:.1f} s"
            + ("" if report.complete else "; recovery points need more than was found")
        ),
    )
    for name in report.missing_packs:
        note(f"warning: {name} is listed, but not there; run `holdfast repo check`")
    whole = report.complete and not report.missing_packs
    return ExitCode.SUCCESS if whole else ExitCode.WARNING


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
