"""`point …`, `repo stats` and `instant list` at an appliance elsewhere."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from appliance.base.units import format_size
from appliance.cli.output import ExitCode, described, note, show, table

if TYPE_CHECKING:
    from appliance.service.appliance_client import ApplianceClient

_PAGE = 1000


def list_points(args: argparse.Namespace, client: ApplianceClient) -> int:
    """Oldest first, as here; page by page."""
    points: list[dict[str, Any]] = []
    before = None
    while page := client.get("points", vm=args.vm, before=before, limit=_PAGE):
        points += page
        before = page[-1]["point_id"]
        if len(page) < _PAGE:
            break
    points.reverse()

    def text() -> str:
        rows = [
            (each["point_id"], each["vm"], each["created_at"][:19], each["consistency"],
             str(each["disk_count"]), format_size(each["size_bytes"]),
             format_size(each["stored_bytes"]))
            for each in points
        ]  # fmt: skip
        return table(rows, ("POINT", "VM", "CREATED", "CONSISTENCY", "DISKS", "SIZE", "STORED"))

    show(args, points, text)
    return ExitCode.SUCCESS


def show_point(args: argparse.Namespace, client: ApplianceClient) -> int:
    point = client.get("points", args.point)

    def text() -> str:
        disks = [
            f"disk {disk['number']}: {disk['label']}, {format_size(disk['size_bytes'])}, stored "
            f"{format_size(disk['stored_bytes'])}, root {disk['root_hex'][:16]}…"
            for disk in point["disks"]
        ]
        return "\n".join([described(point), *disks])

    show(args, point, text)
    return ExitCode.SUCCESS


def forget_points(args: argparse.Namespace, client: ApplianceClient) -> int:
    """By whole ids; each by itself, so some may be gone when one is refused."""
    answers = []
    for point in args.points:
        answer = client.delete("points", point)
        answers.append({"point_id": point, **answer})
        if answer["approval"] is not None:
            note(f"request {answer['approval']['id']} waits for another administrator")
    show(
        args,
        answers,
        lambda: "\n".join(f"{each['point_id']}: {each['state']}" for each in answers),
    )
    return ExitCode.SUCCESS


def show_stats(args: argparse.Namespace, client: ApplianceClient) -> int:
    stats = client.get("repository")
    show(args, stats, lambda: described(stats))
    return ExitCode.SUCCESS


def list_sessions(args: argparse.Namespace, client: ApplianceClient) -> int:
    sessions = client.get("recoveries")

    def text() -> str:
        rows = [
            (each["session_id"], each["vm"], each["phase"], "yes" if each["served"] else "no",
             each["host"] or "local", each["point_id"], each["failure"] or "")
            for each in sessions
        ]  # fmt: skip
        return table(rows, ("SESSION", "VM", "PHASE", "SERVED", "HOST", "POINT", "STUCK"))

    show(args, sessions, text)
    stuck = any(each["failure"] for each in sessions)
    return ExitCode.WARNING if stuck else ExitCode.SUCCESS
