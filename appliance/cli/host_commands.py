"""`holdfast host …`: register hypervisors, list them, look whether they can be worked with."""

from __future__ import annotations

import argparse
import getpass
import re
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.base.errors import ApplianceError, UsageError
from appliance.base.secret import Secret
from appliance.cli.numbers import PORT_MAX, port
from appliance.cli.options import home_path, read_secret_file, read_secret_line
from appliance.cli.output import ExitCode, note, show, table
from appliance.cli.prompts import interruptible

if TYPE_CHECKING:
    from appliance.catalog.hosts import HostRecord
    from appliance.service.hosts import AnyLogin
    from appliance.sources.hyperv_node import NodeAddress

_ADDRESS = re.compile(r"[A-Za-z0-9_:-]{1,63}(\.[A-Za-z0-9_:-]{1,63})*\.?")
DEFAULT_PORT = 443
DEFAULT_PORTS = {"vsphere": 443, "hyperv": 5986}  # over https


class FingerprintNotAcceptedError(ApplianceError):
    """Nobody has said that this is the server's certificate.

    Compare the fingerprint with what the server's own console shows, then give it with
    `--accept-fingerprint`.
    """

    code = "host.fingerprint-not-accepted"


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    group = commands.add_parser("host", help="the hypervisors to back up from")
    verbs = group.add_subparsers(metavar="VERB", required=True)

    adding = verbs.add_parser("add", parents=[common], help="register a hypervisor")
    adding.add_argument("name", metavar="NAME", help="what to call it here")
    adding.add_argument("--type", required=True, choices=("vsphere", "hyperv"))
    adding.add_argument(
        "--address",
        required=True,
        metavar="A[:PORT]",
        help="vCenter Server, ESXi host or Hyper-V host",
    )
    adding.add_argument("--user", required=True, metavar="U")
    adding.add_argument(
        "--password-file",
        type=Path,
        metavar="FILE",
        help="first line is the password (default: ask, or read standard input)",
    )
    adding.add_argument(
        "--accept-fingerprint",
        metavar="FP",
        action="append",
        help="SHA-256 or SHA-1 of the server's certificate (default: show it and ask); once more "
        "for each --node, in their order",
    )
    adding.add_argument(
        "--node",
        metavar="A[:PORT[:SMB_PORT]]",
        action="append",
        default=[],
        help="another node of a Hyper-V host's failover cluster; may be repeated",
    )
    adding.add_argument(
        "--auth",
        choices=("ntlm", "kerberos", "credssp", "basic"),
        default="ntlm",
        help="how to log in to a Hyper-V host (default: ntlm)",
    )
    adding.add_argument(
        "--scheme",
        choices=("https", "http"),
        default="https",
        help="of a Hyper-V host; over http, messages are sealed by the login (default: https)",
    )
    adding.add_argument(
        "--smb-port", type=port, default=445, metavar="N", help="of a Hyper-V host (default: 445)"
    )
    adding.add_argument(
        "--smb-protection",
        choices=("signed", "encrypted"),
        default="signed",
        help="of disk data that a Hyper-V host sends (default: signed)",
    )
    adding.set_defaults(run=run_add)

    listing = verbs.add_parser("list", parents=[common], help="list them")
    listing.set_defaults(run=run_list)

    testing = verbs.add_parser(
        "test", parents=[common], help="log in and look which privileges are missing"
    )
    testing.add_argument("name", metavar="NAME")
    testing.set_defaults(run=run_test)

    removing = verbs.add_parser("remove", parents=[common], help="forget one and its password")
    removing.add_argument("name", metavar="NAME")
    removing.add_argument(
        "--force", action="store_true", help="also if things of ours are still there"
    )
    removing.set_defaults(run=run_remove)


def parse_address(text: str, default_port: int = DEFAULT_PORT) -> tuple[str, int]:
    """Split `A`, `A:PORT`, `[A]:PORT` (IPv6). Raises UsageError."""
    address, port_text = text, ""
    if text.startswith("["):
        address, _, rest = text[1:].partition("]")
        port_text = rest.removeprefix(":")
    elif text.count(":") == 1:
        address, _, port_text = text.partition(":")
    if not _ADDRESS.fullmatch(address) or (
        port_text and not (port_text.isascii() and port_text.isdigit() and len(port_text) <= 5)
    ):
        raise UsageError(f"not an address or ADDRESS:PORT: {text!r}")
    number = int(port_text or default_port)
    if not 0 < number <= PORT_MAX:
        raise UsageError(f"not a port: {number}")
    return address, number


def parse_node(text: str, port: int, smb_port: int) -> NodeAddress:
    """Split `A`, `A:PORT`, `A:PORT:SMB_PORT`, `[A]:PORT`; `port` and `smb_port` are the defaults.

    Raises UsageError.
    """
    from appliance.sources.hyperv_node import NodeAddress

    host, ports = text, ""
    if text.startswith("[") or text.count(":") <= 2:
        head, colon, rest = text.partition("]:" if text.startswith("[") else ":")
        if colon:
            host, ports = head + ("]" if text.startswith("[") else ""), rest
    main, _, smb = ports.partition(":")
    address, found = parse_address(f"{host}:{main}" if main else host, port)
    if smb and not (smb.isascii() and smb.isdigit()):
        raise UsageError(f"not a node's ADDRESS[:PORT[:SMB_PORT]]: {text!r}")
    try:
        return NodeAddress(
            address=address, port=found, smb_port=int(smb or smb_port), fingerprint=""
        )
    except ValueError as error:
        raise UsageError(str(error)) from None


def run_add(args: argparse.Namespace) -> int:
    from appliance.service.home import Home
    from appliance.service.hosts import add_host

    login = _hyperv_login(args) if args.type == "hyperv" else _vsphere_login(args)
    with Home(home_path(args)).open_catalog() as catalog:
        catalog.hosts.check_free(login.name)
        if args.scheme == "https":
            login = _with_fingerprints(args, login)
        added = add_host(catalog, login, read_password(args, login.user))
    about = added.about
    show(
        args,
        _as_json(added.record)
        | {"product": about.product, "version": about.version, "build": about.build},
        lambda: f"added {args.name}: {about.product} {about.version} build {about.build}",
    )
    return ExitCode.SUCCESS


def _vsphere_login(args: argparse.Namespace) -> AnyLogin:
    from appliance.sources.vsphere_host import HostLogin

    if args.scheme != "https" or args.node:
        raise UsageError("vSphere is reached over https only, and its hosts through the vCenter")
    address, port = parse_address(args.address)
    return HostLogin(name=args.name, address=address, port=port, user=args.user, fingerprint="")


def _hyperv_login(args: argparse.Namespace) -> AnyLogin:
    from appliance.sources.hyperv_host import HTTP_PORT, HTTPS_PORT, HypervLogin

    is_plain = args.scheme == "http"
    address, port = parse_address(args.address, HTTP_PORT if is_plain else HTTPS_PORT)
    login = HypervLogin.from_settings(
        {
            "login": args.auth,
            "scheme": args.scheme,
            "smb_port": str(args.smb_port),
            "smb_protection": args.smb_protection,
        },
        name=args.name,
        address=address,
        port=port,
        user=args.user,
        fingerprint="",
    )
    nodes = [parse_node(text, port, args.smb_port) for text in args.node]
    return replace(login, nodes=tuple(nodes))


def _with_fingerprints(args: argparse.Namespace, login: AnyLogin) -> AnyLogin:
    """With those of the server and of its other nodes, accepted by option or by a person."""
    from appliance.sources.hyperv_host import HypervLogin

    others = login.others if isinstance(login, HypervLogin) else []
    given: list[str] = args.accept_fingerprint or []
    if given and len(given) != 1 + len(others):
        raise UsageError("give --accept-fingerprint once, and once more for each --node")
    accepted = [
        _fingerprint(each, given[place] if given else None)
        for place, each in enumerate([login, *others])
    ]
    if isinstance(login, HypervLogin):
        pinned = zip(login.nodes, accepted[1:], strict=True)
        nodes = tuple(replace(node, fingerprint=found) for node, found in pinned)
        return replace(login, fingerprint=accepted[0], nodes=nodes)
    return replace(login, fingerprint=accepted[0])


def _fingerprint(login: AnyLogin, accepted: str | None) -> str:
    from appliance.service.hosts import accepted_fingerprint, shown_fingerprint

    if accepted:
        return accepted_fingerprint(login, accepted)
    return accepted_by_person(shown_fingerprint(login), f"{login.address}:{login.port}")


def accepted_by_person(found: str, where: str) -> str:
    """`found`, if somebody at the terminal says so. Raises FingerprintNotAcceptedError."""
    if sys.stdin.isatty():
        note(f"certificate of {where}, SHA-256:\n  {found}")
        with interruptible():
            note("is that what the server itself shows? type yes to accept it:")
            if sys.stdin.readline().strip().lower() == "yes":
                return found
    raise FingerprintNotAcceptedError(f"the certificate of {where} is {found}")


def read_password(args: argparse.Namespace, user: str) -> Secret:
    """From a file, the terminal or standard input. Raises UsageError."""
    if args.password_file:
        secret = read_secret_file(args.password_file)
    elif sys.stdin.isatty():
        with interruptible():
            secret = Secret.of_text(getpass.getpass(f"password of {user}: "))
    else:
        secret = read_secret_line(sys.stdin.buffer, "standard input")
    try:
        secret.reveal().decode()
    except UnicodeDecodeError:
        raise UsageError("the password is not UTF-8") from None
    return secret


def run_list(args: argparse.Namespace) -> int:
    from appliance.service.home import Home

    with Home(home_path(args)).open_catalog() as catalog:
        hosts = catalog.hosts.list()

    def text() -> str:
        rows = [
            (host.name, host.kind, f"{host.address}:{host.port}", host.user, host.fingerprint)
            for host in hosts
        ]
        return table(rows, ("HOST", "TYPE", "ADDRESS", "USER", "CERTIFICATE (SHA-256)"))

    show(args, [_as_json(host) for host in hosts], text)
    return ExitCode.SUCCESS


def _as_json(host: HostRecord) -> dict[str, Any]:
    return {
        "host": host.name,
        "type": host.kind,
        "address": host.address,
        "port": host.port,
        "user": host.user,
        "fingerprint_sha256": host.fingerprint,
        "server_id": host.server_id,
        "added_at": host.added_at.isoformat(),
    }


def run_test(args: argparse.Namespace) -> int:
    """Exit code 1: backups would fail; 3: they work, something optional does not."""
    from appliance.service.home import Home
    from appliance.service.hosts import cluster_reach, open_host

    with Home(home_path(args)).open_catalog() as catalog:
        record = catalog.hosts.get(args.name)
        with open_host(catalog, record) as host:
            about = host.about
            lacking = host.lacking_purposes()
            reach = cluster_reach(host)
    step = (
        f"give them to the role of {record.user} at the root of the inventory, with propagation; "
        "leave out the purposes that you do not use"
        if record.kind == "vsphere"
        else f"make {record.user} a local administrator of a host with the Hyper-V role"
    )
    document = {
        "host": record.name,
        **asdict(about),
        "missing_privileges": [asdict(item) for item in lacking],
        "next_step": step if lacking else None,
        "cluster_nodes": reach.nodes,
        "missing_nodes": dict(reach.missing),
    }

    def text() -> str:
        lines = [f"{record.name}: {about.product} {about.version} build {about.build}, logged in"]
        if reach.nodes:
            lines.append(f"one of a cluster of {', '.join(reach.nodes)}")
        lines += [
            f"{why}; VMs that it owns are not backed up: see `host add --node`"
            for why in reach.missing.values()
        ]
        for item in lacking:
            mark = "" if item.needed_to_back_up else ", optional"
            lines += [f"missing for {item.purpose}{mark}:", *(f"  {p}" for p in item.privileges)]
        return "\n".join([*lines, f"next step: {step}" if lacking else "no privilege is missing"])

    show(args, document, text)
    if any(item.needed_to_back_up for item in lacking):
        return ExitCode.FAILED
    return ExitCode.WARNING if lacking or reach.missing else ExitCode.SUCCESS


def run_remove(args: argparse.Namespace) -> int:
    from appliance.service.home import Home

    with Home(home_path(args)).open_catalog() as catalog:
        catalog.hosts.remove(args.name, forget_intents=args.force)
    show(args, {"removed": args.name}, lambda: f"removed {args.name}")
    note("recovery points of its VMs stay")
    return ExitCode.SUCCESS
