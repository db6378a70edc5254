"""`holdfast notify …`: where notifications go: e-mail, webhook, syslog."""

from __future__ import annotations

import argparse
import getpass
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.base.errors import UsageError
from appliance.base.secret import Secret
from appliance.cli.numbers import port
from appliance.cli.options import home_path, read_secret_file, read_secret_line
from appliance.cli.output import ExitCode, note, show, table
from appliance.cli.prompts import interruptible

if TYPE_CHECKING:
    from appliance.catalog.channel import Channel
    from appliance.catalog.notifications import ChannelState

_OCCASIONS = ("failed", "warning", "recovered", "success")
_FIELDS = {
    "email": ("server", "security", "sender", "recipients", "user"),
    "webhook": ("url",),
    "syslog": ("server", "transport", "facility"),
}


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    group = commands.add_parser("notify", help="who is told of what, and how")
    verbs = group.add_subparsers(metavar="VERB", required=True)
    _add_adding(verbs.add_parser("add", parents=[common], help="add a channel"))

    listing = verbs.add_parser(
        "list", parents=[common], help="the channels, and how their last delivery ended"
    )
    listing.set_defaults(run=run_list)

    testing = verbs.add_parser("test", parents=[common], help="send a test message now")
    testing.add_argument("name", metavar="NAME")
    testing.set_defaults(run=run_test)

    removing = verbs.add_parser(
        "remove", parents=[common], help="forget one, its secret, and what waits for it"
    )
    removing.add_argument("name", metavar="NAME")
    removing.set_defaults(run=run_remove)


def _add_adding(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="what to call it here")
    parser.add_argument("--type", required=True, choices=tuple(_FIELDS))
    parser.add_argument(
        "--on",
        dest="occasions",
        action="append",
        choices=_OCCASIONS,
        help="told at once; repeatable (default: failed, warning, recovered)",
    )
    parser.add_argument(
        "--digest-only", action="store_true", help="tell nothing at once, only the digest"
    )
    parser.add_argument("--digest-at", metavar="HH:MM", help="a summary every day (default: none)")
    parser.add_argument("--time-zone", metavar="ZONE", help="of --digest-at (default: UTC)")
    parser.add_argument(
        "--ca-file",
        type=Path,
        metavar="FILE",
        help="PEM of the only authority to trust (default: the system's)",
    )
    parser.add_argument("--server", metavar="HOST", help="of email and syslog")
    parser.add_argument("--port", type=port, metavar="N", help="default: the usual one")
    email = parser.add_argument_group("email, by SMTP over TLS")
    email.add_argument(
        "--security",
        choices=("starttls", "tls"),
        help="TLS after STARTTLS (default), or from the first byte",
    )
    email.add_argument("--from", dest="sender", metavar="ADDRESS")
    email.add_argument("--to", dest="recipients", action="append", metavar="ADDRESS")
    email.add_argument("--user", metavar="U", help="default: no login")
    email.add_argument("--password-file", type=Path, metavar="FILE", help="first line (or ask)")
    webhook = parser.add_argument_group("webhook, signed JSON over https")
    webhook.add_argument("--url", metavar="https://…")
    webhook.add_argument(
        "--secret-file",
        type=Path,
        metavar="FILE",
        help="first line signs every request (or ask): HMAC-SHA256, X-Holdfast-Signature",
    )
    syslog = parser.add_argument_group("syslog, RFC 5424")
    syslog.add_argument("--transport", choices=("udp", "tcp", "tls"), help="default: tls")
    syslog.add_argument("--facility", type=int, metavar="N", help="default: 16, local0")
    parser.set_defaults(run=run_add)


def run_add(args: argparse.Namespace) -> int:
    from appliance.service.home import Home

    channel = channel_of(args)
    with Home(home_path(args)).open_catalog() as catalog:
        catalog.notifications.add(channel, channel_secret(args))
    show(
        args,
        {"channel": channel.name, "kind": channel.kind},
        lambda: f"added {channel.name}; `holdfast notify test {channel.name}` sends a test",
    )
    return ExitCode.SUCCESS


def channel_of(args: argparse.Namespace) -> Channel:
    """The channel that the options say. Raises UsageError."""
    from pydantic import ValidationError

    from appliance.catalog.channel import CHANNEL

    try:
        return CHANNEL.validate_python(_fields(args))
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"][1:])
        raise UsageError(f"{where}: {first['msg']}") from error


def _fields(args: argparse.Namespace) -> dict[str, Any]:
    """What the model takes; an option that the type does not have is a mistake, as in the API."""
    if args.digest_only and args.occasions:
        raise UsageError("--digest-only and --on exclude each other")
    if args.digest_only and args.digest_at is None:
        raise UsageError("--digest-only needs --digest-at, else nothing is told")
    fields = {
        "name": args.name,
        "kind": args.type,
        "occasions": list(dict.fromkeys(args.occasions or ()))
        or ([] if args.digest_only else None),
        "digest_at": args.digest_at,
        "time_zone": args.time_zone,
        "ca_pem": _ca_pem(args.ca_file),
        "port": args.port or _usual_port(args),
    }
    fields |= {name: getattr(args, name) for names in _FIELDS.values() for name in names}
    return {name: value for name, value in fields.items() if value is not None}


def _usual_port(args: argparse.Namespace) -> int | None:
    if args.type == "email":
        return 465 if args.security == "tls" else 587
    if args.type == "syslog":
        return 514 if args.transport in ("udp", "tcp") else 6514
    return None


def _ca_pem(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        with path.open("rb") as file:
            return file.read(1 << 17).decode("ascii")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not PEM") from error


def channel_secret(args: argparse.Namespace) -> Secret | None:
    """Of the channel, from a file, the standard input or the keyboard. Raises UsageError."""
    if args.type == "syslog" or (args.type == "email" and args.user is None):
        return None
    file, word = (
        (args.secret_file, "secret of the webhook")
        if args.type == "webhook"
        else (args.password_file, f"password of {args.user}")
    )
    if file is not None:
        return read_secret_file(file)
    if not sys.stdin.isatty():
        return read_secret_line(sys.stdin.buffer, "standard input")
    with interruptible():
        return Secret.of_text(getpass.getpass(f"{word}: "))


def run_list(args: argparse.Namespace) -> int:
    from appliance.service.home import Home
    from appliance.service.notify.documents import channel_document

    with Home(home_path(args)).open_catalog() as catalog:
        states = catalog.notifications.channels()
        documents = [channel_document(catalog.notifications, state) for state in states]

    def text() -> str:
        rows = [
            (
                document["name"],
                document["kind"],
                _place(state),
                ", ".join(document["occasions"]) or "-",
                document["digest_at"] or "-",
                document["last"]["state"] if document["last"] else "never used",
                (document["last"] or {}).get("error_code") or "",
            )
            for document, state in zip(documents, states, strict=True)
        ]
        return table(rows, ("NAME", "KIND", "TO", "AT ONCE", "DIGEST", "LAST DELIVERY", "ERROR"))

    show(args, documents, text)
    return ExitCode.SUCCESS


def _place(state: ChannelState) -> str:
    channel = state.channel
    if channel.kind == "webhook":
        return channel.url
    if channel.kind == "email":
        return ", ".join(channel.recipients)
    return f"{channel.server}:{channel.port}/{channel.transport}"


def run_test(args: argparse.Namespace) -> int:
    from appliance.service.home import Home
    from appliance.service.notify.post import Post

    with Home(home_path(args)).open_catalog() as catalog:
        Post(catalog).test(args.name)
    show(args, {"tested": args.name}, lambda: f"sent a test through {args.name}; look for it there")
    return ExitCode.SUCCESS


def run_remove(args: argparse.Namespace) -> int:
    from appliance.service.home import Home

    with Home(home_path(args)).open_catalog() as catalog:
        catalog.notifications.remove(args.name)
    show(args, {"removed": args.name}, lambda: f"removed {args.name}")
    note("the daemon heeds it with the next message")
    return ExitCode.SUCCESS
