"""`host …` and `vm list` at an appliance elsewhere."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from appliance.base.errors import UsageError
from appliance.base.units import format_size
from appliance.cli.host_commands import (
    DEFAULT_PORTS,
    accepted_by_person,
    parse_address,
    read_password,
)
from appliance.cli.output import ExitCode, note, show, table

if TYPE_CHECKING:
    from appliance.service.appliance_client import ApplianceClient

_PAGE = 1000


def list_hosts(args: argparse.Namespace, client: ApplianceClient) -> int:
    hosts = client.get("hosts")

    def text() -> str:
        rows = [
            (each["name"], each["kind"], f"{each['address']}:{each['port']}", each["user"],
             each["fingerprint"])
            for each in hosts
        ]  # fmt: skip
        return table(rows, ("HOST", "TYPE", "ADDRESS", "USER", "CERTIFICATE (SHA-256)"))

    show(args, hosts, text)
    return ExitCode.SUCCESS


def add_host(args: argparse.Namespace, client: ApplianceClient) -> int:
    if args.scheme != "https":
        raise UsageError("a host is reached over plain http only by the appliance itself")
    address, port = parse_address(args.address, DEFAULT_PORTS[args.type])
    fingerprint = args.accept_fingerprint
    if not fingerprint:
        body = {"address": address, "port": port}
        found = str(client.post("fingerprint", body=body)["fingerprint"])
        fingerprint = accepted_by_person(found, f"{address}:{port}")
    password = read_password(args, args.user).reveal().decode()
    added = client.post(
        "hosts",
        body={
            "name": args.name,
            "kind": args.type,
            "address": address,
            "port": port,
            "user": args.user,
            "password": password,
            "fingerprint": fingerprint,
            "auth": args.auth,
            "smb_port": args.smb_port,
            "smb_protection": args.smb_protection,
        },
    )
    show(args, added, lambda: f"added {args.name}")
    return ExitCode.SUCCESS


def test_host(args: argparse.Namespace, client: ApplianceClient) -> int:
    """Exit codes as here."""
    found = client.post("hosts", args.name, "test")

    def text() -> str:
        lines = [f"{args.name}: {found['product']} {found['version']} build {found['build']}"]
        for item in found["lacking"]:
            mark = "" if item["needed_to_back_up"] else ", optional"
            lines += [f"missing for {item['purpose']}{mark}:"]
            lines += [f"  {privilege}" for privilege in item["privileges"]]
        return "\n".join(lines if found["lacking"] else [*lines, "no privilege is missing"])

    show(args, found, text)
    if any(item["needed_to_back_up"] for item in found["lacking"]):
        return ExitCode.FAILED
    return ExitCode.WARNING if found["lacking"] else ExitCode.SUCCESS


def remove_host(args: argparse.Namespace, client: ApplianceClient) -> int:
    if args.force:
        raise UsageError("--force works at the appliance itself only")
    client.delete("hosts", args.name)
    show(args, {"removed": args.name}, lambda: f"removed {args.name}")
    return ExitCode.SUCCESS


def list_vms(args: argparse.Namespace, client: ApplianceClient) -> int:
    found = client.get("vms", host=args.host, limit=_PAGE)
    while len(found["vms"]) < found["match_count"]:
        page = client.get("vms", host=args.host, offset=len(found["vms"]), limit=_PAGE)
        if not page["vms"]:
            break
        found["vms"] += page["vms"]

    def text() -> str:
        rows = [_vm_row(vm) for vm in found["vms"]]
        header = ("HOST", "VM", "POWER", "DISKS", "SIZE", "CBT", "RUNS ON", "FOLDER", "PROTECTED")
        return table(rows, header) if rows else ""

    show(args, found, text)
    for host, failure in found["failures"].items():
        note(f"warning: {host}: {failure}")
    return ExitCode.WARNING if found["failures"] else ExitCode.SUCCESS


def _vm_row(vm: dict[str, Any]) -> tuple[str, ...]:
    return (
        vm["host"],
        vm["name"],
        vm["power"],
        str(len(vm["disks"])),
        format_size(vm["size_bytes"]),
        vm["change_tracking"],
        vm["runs_on"],
        vm["folder"],
        vm["newest_at"] or "no",
    )
