"""`instant …`, `restore vm`, `operation …` and `api` at an appliance elsewhere.

The appliance does the work; the command follows it to its end, as it would here. An interruption
leaves it going there: `operation cancel` ends it.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlsplit

from appliance.base.errors import UsageError
from appliance.cli.instant_start import PRESENTATIONS, RESERVE, wanted_networks
from appliance.cli.output import ExitCode, described, note, show, table
from appliance.cli.run_commands import exit_code_of, live_lines
from appliance.cli.vm_restore_commands import check_together, network_pairs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from appliance.service.appliance_client import ApplianceClient

_LOOK_S = 0.5
_SHOWN_EVERY_LOOKS = 10
_BODY_BYTES_MAX = 1 << 20
_HERE_ONLY = "works at the appliance itself only"


# instant


def start_session(args: argparse.Namespace, client: ApplianceClient) -> int:
    if (args.point is None) == (args.resume is None):
        raise UsageError("name a recovery point, or a session with --resume")
    if args.target == "local" or args.probe:
        raise UsageError(f"--target local {_HERE_ONLY}")
    if args.reserve != RESERVE:
        raise UsageError(f"--reserve {_HERE_ONLY}: its daemon has its own")
    life = {"power_on": args.power_on, "heartbeat_within_s": args.heartbeat_timeout}
    if args.resume:
        return _followed(args, client, client.post("recoveries", args.resume, "resume", body=life))
    networks, isolated, isolate_all = wanted_networks(args.network)
    presentation = PRESENTATIONS[args.presentation] if args.presentation else None
    body = _placed(args, networks) | life
    body |= {
        "isolated": sorted(isolated),
        "isolate_all": isolate_all,
        "address": args.address,
        "breadth": args.mount_on,
        "presentation": presentation,
    }
    return _followed(args, client, client.post("recoveries", body=body))


def finalise_session(args: argparse.Namespace, client: ApplianceClient) -> int:
    body = {"datastore": args.datastore, "allow_downtime": args.allow_downtime}
    return _followed(args, client, client.post("recoveries", args.session, "finalise", body=body))


def discard_session(args: argparse.Namespace, client: ApplianceClient) -> int:
    return _followed(args, client, client.post("recoveries", args.session, "discard"))


# restore vm


def restore_vm(args: argparse.Namespace, client: ApplianceClient) -> int:
    check_together(args)
    if args.transport:
        raise UsageError(f"--transport {_HERE_ONLY}")
    networks = network_pairs(args.network)
    if not args.in_place:
        body = _placed(args, networks)
        body |= {"datastore": args.datastore or "", "power_on": args.power_on}
        return _followed(args, client, client.post("restores", body=body))
    body = {
        "point": args.point,
        "host": args.host,
        "power_off": args.power_off,
        "power_on": args.power_on,
        "verify": not args.no_verify,
        "configuration": args.configuration,
        "networks": _changes(networks),
    }
    return _followed(args, client, client.post("rollbacks", body=body))


def _placed(args: argparse.Namespace, networks: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """What a new VM and a recovered one have in common."""
    return {
        "point": args.point,
        "host": args.host,
        "name": args.name or "",
        "folder": args.folder or "",
        "pool": args.pool or "",
        "machine": args.on or "",
        "networks": _changes(networks),
        "unconnected": args.disconnect,
        "mac": args.mac or "auto",
        "identity": args.uuid or "auto",
    }


def _changes(networks: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"old": old, "new": new} for old, new in networks]


# operation


def list_operations(args: argparse.Namespace, client: ApplianceClient) -> int:
    found = client.get("operations", limit=max(1, min(args.limit, 500)))

    def text() -> str:
        rows = [
            (each["run_id"], each["kind"], each["vm"], each["host"] or "-", each["started_at"][:19],
             each["outcome"] or "running", each["error_code"] or "")
            for each in found
        ]  # fmt: skip
        header = ("OPERATION", "KIND", "VM", "HOST", "STARTED (UTC)", "END", "ERROR")
        return table(rows, header) if rows else "no operations"

    show(args, found, text)
    return ExitCode.SUCCESS


def show_operation(args: argparse.Namespace, client: ApplianceClient) -> int:
    """With --wait, the exit code says how it ended."""
    found = client.get("operations", args.id)
    if args.wait:
        return _followed(args, client, found)
    show(args, found, lambda: _text(found))
    return ExitCode.SUCCESS


def cancel_operation(args: argparse.Namespace, client: ApplianceClient) -> int:
    client.post("operations", args.id, "cancel")
    show(args, {"cancelled": args.id}, lambda: f"asked operation {args.id} to end")
    return ExitCode.SUCCESS


def _followed(args: argparse.Namespace, client: ApplianceClient, shown: dict[str, Any]) -> int:
    """To its end; interrupted, it goes on there, which is a warning."""
    looks = 0
    while shown["outcome"] is None:
        if not args.quiet and looks % _SHOWN_EVERY_LOOKS == 0:
            for line in live_lines(shown["live"]):
                print(line, file=sys.stderr, flush=True)
        looks += 1
        if args.cancel.wait(_LOOK_S):
            name = shown["run_id"]
            note(f"operation {name} goes on; `holdfast operation cancel {name}` ends it")
            break
        shown = client.get("operations", shown["run_id"])
    ended = shown
    for reason in ended["result"].get("reasons", []):
        note(f"[{reason['code']}] {reason['text']}; next step: {reason['next_step']}")
    if "error" in ended["result"]:
        step = ended["result"]["next_step"]
        note(f"[{ended['error_code']}] {ended['result']['error']}\n  {step}")
    show(args, ended, lambda: _text(ended))
    return exit_code_of(ended["outcome"]) if ended["outcome"] else ExitCode.WARNING


def _text(shown: dict[str, Any]) -> str:
    end = shown["outcome"] or "running"
    lines = [f"{shown['kind']} of {shown['vm']}: {end} (operation {shown['run_id']})"]
    result = described(shown["result"])
    return "\n".join([*lines, result] if result else lines)


# api


def call_api(args: argparse.Namespace, client: ApplianceClient) -> int:
    """Print the answer as JSON, or keep it in a file as it comes."""
    try:
        address = urlsplit(args.path)
    except ValueError as error:
        raise UsageError(f"not a path of the API: {args.path!r}") from error
    if address.scheme or address.netloc or address.fragment:
        raise UsageError(f"not a path of the API: {args.path!r}")
    words = address.path.strip("/").removeprefix("api/v1/")
    path = tuple(unquote(part) for part in words.split("/"))
    query: dict[str, str | int | None] = dict(parse_qsl(address.query, keep_blank_values=True))
    body = _body(args.body) if args.body else None
    if args.output is None:
        print(
            json.dumps(client.call(args.method, path, query=query, body=body), indent=1), flush=True
        )
        return ExitCode.SUCCESS
    answer = client.fetch(args.method, path, query=query, body=body)
    try:
        args.output.write_bytes(answer)
    except OSError as error:
        raise UsageError(f"{args.output}: {error.strerror}") from error
    kept = {"output": str(args.output), "size_bytes": len(answer)}
    show(args, kept, lambda: f"{args.output}: {len(answer)} bytes")
    return ExitCode.SUCCESS


def _body(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            return json.loads(file.read(_BODY_BYTES_MAX))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{path} is not JSON, or larger than {_BODY_BYTES_MAX} bytes") from error
