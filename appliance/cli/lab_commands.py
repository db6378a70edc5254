"""`holdfast lab …`: the practice hypervisors, in the background."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from appliance.base.errors import ExternalProgramError, UsageError
from appliance.cli.options import home_path
from appliance.cli.output import ExitCode, note, show

GUESTS = ("tiny", "debian")  # there is "uefi", too


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    group = commands.add_parser("lab", help="practice hypervisors on this machine")
    verbs = group.add_subparsers(metavar="VERB", required=True)
    up = verbs.add_parser(
        "up", parents=[common], help="start a vCenter with hosts that run real guests"
    )
    guests = up.add_mutually_exclusive_group()
    guests.add_argument(
        "--guests",
        default=",".join(GUESTS),
        metavar="LIST",
        help=f"which guests run, by commas (default {','.join(GUESTS)})",
    )
    guests.add_argument("--no-guests", action="store_true", help="only the vCenter, at once")
    up.add_argument(
        "--hyperv",
        nargs="?",
        const="",
        metavar="LIST",
        help="a Hyper-V host, too, and which guests run on it, by commas (default: none)",
    )
    up.set_defaults(run=run_up)
    status = verbs.add_parser("status", parents=[common], help="what runs, and how to reach it")
    status.set_defaults(run=run_status)
    down = verbs.add_parser("down", parents=[common], help="stop it and remove all of it")
    down.set_defaults(run=run_down)


def run_up(args: argparse.Namespace) -> int:
    from lab.up import ON_HYPERV, LabError, up

    guests = [] if args.no_guests else _named(args.guests)
    if args.hyperv is not None:
        guests += [ON_HYPERV, *(f"{ON_HYPERV}{name}" for name in _named(args.hyperv))]
    try:
        state = up(_folder(args), guests)
    except LabError as error:
        raise ExternalProgramError(str(error)) from error
    if state["already_running"]:
        note("the lab runs already")
    show(args, state, lambda: _as_text(state))
    return ExitCode.SUCCESS


def run_status(args: argparse.Namespace) -> int:
    from lab.up import LabError, status

    try:
        state = status(_folder(args))
    except LabError as error:
        raise ExternalProgramError(str(error)) from error
    show(args, state, lambda: _as_text(state) if state["running"] else "no lab runs")
    return ExitCode.SUCCESS


def run_down(args: argparse.Namespace) -> int:
    from lab.up import LabError, down

    try:
        ran = down(_folder(args))
    except LabError as error:
        raise ExternalProgramError(str(error)) from error
    show(args, {"stopped": ran}, lambda: "the lab is down" if ran else "no lab runs")
    return ExitCode.SUCCESS


def _named(text: str) -> list[str]:
    names = [name for name in text.split(",") if name]
    for name in names:
        if name not in GUESTS:
            raise UsageError(f"there is no guest {name}; there are {' and '.join(GUESTS)}")
    return names


def _folder(args: argparse.Namespace) -> Path:
    return home_path(args) / "lab"


def _as_text(state: dict[str, Any]) -> str:
    vcenter = state["vcenter"]
    lines = [
        f"vCenter     {vcenter['url']}",
        f"user        {vcenter['user']}",
        f"password    {vcenter['password']}",
        f"fingerprint {vcenter['fingerprint']}",
        *(f"vm          {vm['name']} ({vm['power']})" for vm in state["vms"]),
        *_hyperv_lines(state.get("hyperv")),
        f"log         {state['log']}",
    ]
    return "\n".join(lines)


def _hyperv_lines(hyperv: dict[str, Any] | None) -> list[str]:
    if hyperv is None:
        return []
    return [
        f"Hyper-V     https://{hyperv['address']}:{hyperv['port']}/wsman",
        f"  user      {hyperv['user']}",
        f"  password  {hyperv['password']}",
        f"  certificate {hyperv['fingerprint']}",
        f"  SMB port  {hyperv['smb_port']}",
        *(f"  vm        {vm['name']} ({vm['power']})" for vm in hyperv["vms"]),
    ]
