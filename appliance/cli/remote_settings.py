"""`notify …`, `approval list` and `approval require` at an appliance elsewhere."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from appliance.base.errors import UsageError
from appliance.cli.notify_commands import channel_of, channel_secret
from appliance.cli.output import ExitCode, show, table

if TYPE_CHECKING:
    from appliance.service.appliance_client import ApplianceClient


def list_channels(args: argparse.Namespace, client: ApplianceClient) -> int:
    channels = client.get("notifications")

    def text() -> str:
        rows = [
            (each["name"], each["kind"], ", ".join(each["occasions"]) or "-",
             each["digest_at"] or "-", (each["last"] or {}).get("state") or "never used")
            for each in channels
        ]  # fmt: skip
        return table(rows, ("NAME", "KIND", "AT ONCE", "DIGEST", "LAST DELIVERY"))

    show(args, channels, text)
    return ExitCode.SUCCESS


def add_channel(args: argparse.Namespace, client: ApplianceClient) -> int:
    channel = channel_of(args).model_dump(mode="json")
    secret = channel_secret(args)
    body = {"channel": channel, "secret": secret.reveal().decode() if secret else None}
    added = client.post("notifications", body=body)
    name = added["name"]
    show(args, added, lambda: f"added {name}; `holdfast notify test {name}` sends a test")
    return ExitCode.SUCCESS


def test_channel(args: argparse.Namespace, client: ApplianceClient) -> int:
    client.post("notifications", args.name, "test")
    show(args, {"tested": args.name}, lambda: f"sent a test through {args.name}; look for it there")
    return ExitCode.SUCCESS


def remove_channel(args: argparse.Namespace, client: ApplianceClient) -> int:
    client.delete("notifications", args.name)
    show(args, {"removed": args.name}, lambda: f"removed {args.name}")
    return ExitCode.SUCCESS


def list_approvals(args: argparse.Namespace, client: ApplianceClient) -> int:
    guard = client.get("approvals", "guard")["require"]
    requests = client.get("approvals", limit=1000)

    def text() -> str:
        rows = [
            (str(each["id"]), each["kind"], str(len(each["objects"])), each["requested_by"],
             each["expires_at"][:16], each["state"], each["decided_by"] or "")
            for each in requests
        ]  # fmt: skip
        header = ("REQUEST", "WHAT", "COUNT", "BY", "EXPIRES", "STATE", "DECIDED BY")
        return f"deletion by hand requires: {guard}\n{table(rows, header)}"

    show(args, {"require": guard, "requests": requests}, text)
    return ExitCode.SUCCESS


def require_approval(args: argparse.Namespace, client: ApplianceClient) -> int:
    """In the name of the token's account."""
    if args.account or args.password_file or args.code:
        raise UsageError("the token says who asks; leave out --account")
    asked = client.put("approvals", "guard", body={"require": args.guard})
    show(args, asked, lambda: _asked_words(asked, args.guard))
    return ExitCode.SUCCESS


def _asked_words(asked: dict[str, Any], guard: str) -> str:
    if asked["approval"] is None:
        return f"deletion by hand requires: {guard}"
    return f"request {asked['approval']['id']} waits for another administrator"
