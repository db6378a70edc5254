"""`holdfast vm list`: the VMs of the registered hosts, and whether they are protected."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from appliance.base.error_document import next_step
from appliance.base.errors import ApplianceError
from appliance.base.units import format_size
from appliance.cli.options import home_path, open_repository, repository_path
from appliance.cli.output import ExitCode, note, show, table

if TYPE_CHECKING:
    from appliance.catalog.catalog import Catalog
    from appliance.catalog.hosts import HostRecord
    from appliance.sources.listed_vm import ListedVm
    from appliance.sources.vm_identity import KnownPoint, PointNames


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    group = commands.add_parser("vm", help="the VMs of registered hypervisors")
    verbs = group.add_subparsers(metavar="VERB", required=True)
    listing = verbs.add_parser(
        "list", parents=[common], help="VMs, their disks, and what protects them"
    )
    listing.add_argument("--host", metavar="H", help="only this host (default: all)")
    listing.set_defaults(run=run_list)


@dataclass(frozen=True, slots=True)
class _Row:
    vm: ListedVm
    newest: KnownPoint | None


def run_list(args: argparse.Namespace) -> int:
    from appliance.service.home import Home

    rows: list[_Row] = []
    failures: list[ApplianceError] = []
    with Home(home_path(args)).open_catalog() as catalog:
        hosts = [catalog.hosts.get(args.host)] if args.host else catalog.hosts.list()
        points, problem = _points(args)
        for host in hosts:
            try:
                vms = _inventory(catalog, host)
            except ApplianceError as error:
                if len(hosts) == 1:
                    raise
                failures.append(error)
                continue
            rows += [_Row(vm, points.newest_of(vm.identity) if points else None) for vm in vms]
    show(args, [_as_json(row, points is not None) for row in rows], lambda: _text(rows))
    for failure in failures:
        note(f"warning [{failure.code}] {failure}; next step: {next_step(failure)}")
    if problem:
        note(problem)
    if not hosts:
        note("no host is registered; `holdfast host add` does that")
    return ExitCode.WARNING if failures or problem else ExitCode.SUCCESS


def _inventory(catalog: Catalog, record: HostRecord) -> list[ListedVm]:
    from appliance.service.hosts import list_vms, open_to_read

    with open_to_read(catalog, record) as host:
        return list_vms(host)


def _points(args: argparse.Namespace) -> tuple[PointNames | None, str]:
    """The repository's points, or None and why they cannot be read.

    That there is no repository yet is no problem, unless one was named.
    """
    from appliance.service.protection import point_names

    path = repository_path(args)
    if path == home_path(args) / "repository" and not path.exists():
        return point_names([]), ""
    try:
        with open_repository(args) as repository:
            manifests, damaged = repository.points.readable()
    except ApplianceError as error:
        return None, f"warning [{error.code}] {error}; what is protected is not known"
    problem = f"warning: {len(damaged)} recovery points cannot be read" if damaged else ""
    return point_names(manifests), problem


def _as_json(row: _Row, known: bool) -> dict[str, Any]:
    vm, newest = row.vm, row.newest
    return {
        "host": vm.host,
        "vm": vm.name,
        "moref": vm.moref,
        "instance_uuid": vm.identity.instance_uuid,
        "power": vm.power,
        "folder": vm.folder,
        "esxi_host": vm.runs_on,
        "change_tracking": vm.change_tracking,
        "size_bytes": vm.size_bytes,
        "disks": [
            {
                "key": disk.key,
                "label": disk.label,
                "size_bytes": disk.size_bytes,
                "file_name": disk.file_name,
                "obstacle": disk.obstacle.as_json() if disk.obstacle else None,
            }
            for disk in vm.disks
        ],
        "obstacles": [obstacle.as_json() for obstacle in vm.obstacles],
        "protected": newest is not None if known else None,
        "newest_point": newest
        and {
            "point_id": newest.point_id,
            "vm": newest.name,
            "created_at": newest.created_at.isoformat(),
        },
    }


def _text(rows: Sequence[_Row]) -> str:
    if not rows:
        return ""
    header = ("HOST", "VM", "POWER", "DISKS", "SIZE", "CBT", "RUNS ON", "FOLDER", "PROTECTED")
    lines = [
        (
            row.vm.host,
            row.vm.name,
            row.vm.power,
            str(len(row.vm.disks)),
            format_size(row.vm.size_bytes),
            row.vm.change_tracking,
            row.vm.runs_on,
            row.vm.folder,
            _protection(row),
        )
        for row in rows
    ]
    reasons = [
        f"{row.vm.host}/{row.vm.name}{where}: [{reason.code}] {reason.text}; "
        f"next step: {reason.next_step}"
        for row in rows
        for where, reason in [
            *(("", reason) for reason in row.vm.obstacles),
            *((f", {disk.label}", disk.obstacle) for disk in row.vm.disks if disk.obstacle),
        ]
    ]
    shown = table(lines, header)
    return "\n".join([shown, "", "cannot be protected:", *reasons]) if reasons else shown


def _protection(row: _Row) -> str:
    if row.newest is None:
        return "no"
    renamed = "" if row.newest.name == row.vm.name else f" as {row.newest.name}"
    return f"{row.newest.created_at:%Y-%m-%d %H:%M}{renamed}"
