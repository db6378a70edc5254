"""What the console of the appliance shows: where it is reached, its certificate, what is wrong.

Pure: from what is known to lines of text. The set-up token is shown only as long as nobody has made
the first account; who sees the console owns the machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from appliance.machine.layout import Status


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsoleFacts:
    version: str
    hostname: str
    addresses: Sequence[str]
    """Of this machine as others reach it; IPv6 without brackets."""
    fingerprint: str
    """SHA-256 of the certificate; "" while there is none."""
    setup_token: str
    """"" once the first account was made, or before the daemon runs."""
    status: Status | None


def console_page(facts: ConsoleFacts) -> str:
    lines = [f"Holdfast {facts.version} on {facts.hostname}", ""]
    if facts.status is None:
        return "\n".join([*lines, "  starting …", ""])
    if facts.addresses:
        urls = [f"https://{f'[{each}]' if ':' in each else each}/" for each in facts.addresses]
        lines += [
            f"  {'web interface:' if number == 0 else '':<15}{url}"
            for number, url in enumerate(urls)
        ]
    else:
        lines.append("  no network address yet")
    if facts.fingerprint:
        lines += ["  certificate, SHA-256 (compare it in the browser):"]
        lines += [f"    {facts.fingerprint[:48]}", f"    {facts.fingerprint[48:]}"]
    if facts.setup_token:
        lines += [
            "",
            f"  set-up token: {facts.setup_token}",
            "  (for the first account, used once)",
        ]
    lines += [""] + [f"  PROBLEM {problem}" for problem in facts.status.problems]
    if may_set_up(facts):
        lines.append("  Press Enter to set host name, network and time.")
    return "\n".join([*lines, ""])


def may_set_up(facts: ConsoleFacts) -> bool:
    """Until somebody has an account; afterwards an administrator logs in for that."""
    if facts.status is None:
        return False
    return bool(facts.setup_token) or bool(facts.status.problems) or not facts.status.configured
