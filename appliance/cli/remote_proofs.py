"""`certificate list` and `certificate show` at an appliance elsewhere.

What comes from there is its word; `certificate verify` checks a file offline.
"""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from appliance.cli.output import ExitCode, described, show, table

if TYPE_CHECKING:
    from appliance.service.appliance_client import ApplianceClient

_PAGE = 1000


def list_certificates(args: argparse.Namespace, client: ApplianceClient) -> int:
    """Exit code as here: one that is refused is a failure."""
    found: list[dict[str, Any]] = []
    before = None
    while page := client.get("certificates", before=before, limit=_PAGE):
        found += page
        before = page[-1]["sequence"]
    found.reverse()

    def text() -> str:
        rows = [
            (str(each["sequence"]), each["issued_at"] or "", each["kind"], each["verdict"] or "",
             " ".join(each["vms"]))
            for each in found
        ]  # fmt: skip
        return table(rows, ("NUMBER", "ISSUED", "KIND", "VERDICT", "VMS"))

    show(args, found, text)
    refused = any(each["failure"] for each in found)
    return ExitCode.FAILED if refused else ExitCode.SUCCESS


def show_certificate(args: argparse.Namespace, client: ApplianceClient) -> int:
    found = client.get("certificates", str(args.number))
    shown = {name: value for name, value in found.items() if name != "file"}
    show(args, found, lambda: f"{described(shown)}\n{json.dumps(found['body'], indent=1)}")
    return ExitCode.SUCCESS
