"""`holdfast point …` and `holdfast prune`: recovery points and their retention."""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from appliance.base.units import format_size
from appliance.cli.administrator import add_account_options
from appliance.cli.guarded_forget import forget_points
from appliance.cli.options import home_path, open_repository
from appliance.cli.output import ExitCode, note, show, table

if TYPE_CHECKING:
    from appliance.repository.manifest import Manifest

_RULES = ("last", "hourly", "daily", "weekly", "monthly", "yearly")


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    group = commands.add_parser("point", help="recovery points")
    verbs = group.add_subparsers(metavar="VERB", required=True)

    listing = verbs.add_parser("list", parents=[common], help="list them, oldest first")
    listing.add_argument("--vm", metavar="NAME")
    listing.set_defaults(run=run_list)

    showing = verbs.add_parser("show", parents=[common], help="everything about one")
    showing.add_argument("point", metavar="P")
    showing.set_defaults(run=run_show)

    diff = verbs.add_parser("diff", parents=[common], help="what differs between two")
    diff.add_argument("point", metavar="P")
    diff.add_argument("other", metavar="Q")
    diff.set_defaults(run=run_diff)

    forget = verbs.add_parser("forget", parents=[common], help="remove a recovery point")
    forget.add_argument("points", nargs="+", metavar="P")
    add_account_options(forget)
    forget.set_defaults(run=run_forget)

    prune = commands.add_parser(
        "prune", parents=[common], help="remove recovery points that the policy does not keep"
    )
    prune.add_argument("--vm", metavar="NAME", help="only this VM (default: each VM by itself)")
    prune.add_argument("--dry-run", action="store_true", help="show the plan, change nothing")
    for rule in _RULES:
        prune.add_argument(f"--keep-{rule}", type=int, default=0, metavar="N")
    add_account_options(prune)
    prune.set_defaults(run=run_prune)


def run_list(args: argparse.Namespace) -> int:
    with open_repository(args) as repository:
        manifests, damaged = repository.points.readable()
    chosen = [manifest for manifest in manifests if args.vm in (None, manifest.vm)]
    for error in damaged.values():
        note(f"warning [{error.code}] {error}")
    document = [_summary(manifest) for manifest in chosen]

    def text() -> str:
        rows = [
            (
                manifest.point_id,
                manifest.vm,
                f"{manifest.created_at:%Y-%m-%d %H:%M:%S}",
                manifest.consistency,
                str(len(manifest.disks)),
                format_size(manifest.size_bytes),
                format_size(sum(disk.stored_bytes for disk in manifest.disks)),
            )
            for manifest in chosen
        ]
        return table(rows, ("POINT", "VM", "CREATED", "CONSISTENCY", "DISKS", "SIZE", "STORED"))

    show(args, document, text)
    return ExitCode.WARNING if damaged else ExitCode.SUCCESS


def _summary(manifest: Manifest) -> dict[str, Any]:
    return {
        "point_id": manifest.point_id,
        "vm": manifest.vm,
        "created_at": manifest.created_at.isoformat(),
        "consistency": manifest.consistency,
        "parent": manifest.parent,
        "size_bytes": manifest.size_bytes,
        "stored_bytes": sum(disk.stored_bytes for disk in manifest.disks),
        "disks": len(manifest.disks),
    }


def run_show(args: argparse.Namespace) -> int:
    with open_repository(args) as repository:
        manifest = repository.points.find(args.point)

    def text() -> str:
        lines = [
            f"recovery point  {manifest.point_id}",
            f"VM              {manifest.vm}",
            f"created         {manifest.created_at.isoformat()}",
            f"committed       {manifest.committed_at.isoformat()}",
            f"consistency     {manifest.consistency}",
            f"source          {manifest.source}",
            f"built upon      {manifest.parent or 'nothing'}",
        ]
        lines += [
            f"disk {disk.number}          {disk.label}, {format_size(disk.size_bytes)}, "
            f"changed {format_size(disk.changed_bytes)}, stored {format_size(disk.stored_bytes)}, "
            f"root {disk.root_hex[:16]}…"
            for disk in manifest.disks
        ]
        return "\n".join(lines)

    show(args, manifest.model_dump(mode="json"), text)
    return ExitCode.SUCCESS


def run_diff(args: argparse.Namespace) -> int:
    from appliance.repository.point_diff import diff_points

    with open_repository(args) as repository:
        first, second = repository.points.find(args.point), repository.points.find(args.other)
        differences = diff_points(repository, first, second)
    document = {
        "point_id": first.point_id,
        "other_point_id": second.point_id,
        "disks": [
            {
                "number": disk.number,
                "changed_bytes": disk.changed_bytes,
                "extents": [
                    {"start": extent.offset, "length": extent.length} for extent in disk.extents
                ],
            }
            for disk in differences
        ],
    }

    def text() -> str:
        return "\n".join(
            f"disk {disk.number}: {format_size(disk.changed_bytes)} differ "
            f"in {len(disk.extents)} extents"
            for disk in differences
        )

    show(args, document, text)
    return ExitCode.SUCCESS


def run_forget(args: argparse.Namespace) -> int:
    from appliance.service.approval_documents import asked_document, asked_words

    with open_repository(args) as repository:
        chosen = [repository.points.find(text) for text in args.points]
        asked = forget_points(args, repository, [manifest.id for manifest in chosen])
    forgotten = [manifest.point_id for manifest in chosen] if asked.approval is None else []
    show(
        args,
        {"forgotten": forgotten} | asked_document(asked),
        lambda: asked_words(asked, "\n".join(f"forgot {p}" for p in forgotten)),
    )
    if forgotten:
        note("`holdfast repo gc` frees their space")
    return ExitCode.SUCCESS


def run_prune(args: argparse.Namespace) -> int:
    from appliance.repository.retention import (
        Action,
        PointSummary,
        RetentionPolicy,
        plan_retention,
    )
    from appliance.service.approval_documents import asked_document, asked_words
    from appliance.service.deletion import Asked
    from appliance.service.points_in_use import points_in_use

    asked = Asked(approval=None)
    policy = RetentionPolicy(**{f"keep_{rule}": getattr(args, f"keep_{rule}") for rule in _RULES})
    with open_repository(args) as repository:
        points = [
            PointSummary(point_id=manifest.id, vm=manifest.vm, created_at=manifest.created_at)
            for manifest in repository.points.list(args.vm)
        ]
        used = points_in_use(home_path(args))
        plan = [
            replace(
                decision,
                action=Action.KEEP,
                reason=f"recovery session {used[decision.point_id]} runs from it",
            )
            if decision.point_id in used
            else decision
            for decision in plan_retention(points, policy)
        ]
        if not args.dry_run:
            removed = [each.point_id for each in plan if each.action is Action.REMOVE]
            asked = forget_points(args, repository, removed) if removed else asked
    document = {
        "dry_run": args.dry_run,
        **asked_document(asked),
        "points": [asdict(decision) for decision in plan],
    }

    def text() -> str:
        rows = [(decision.point_id, decision.action, decision.reason) for decision in plan]
        return table(rows, ("POINT", "ACTION", "REASON"))

    show(args, document, text)
    if asked.approval is not None:
        note(f"nothing is removed yet: {asked_words(asked, '')}")
    return ExitCode.SUCCESS
