"""`holdfast operation …`, `holdfast api …`: what only an appliance's API has.

Restores and steps of recovery sessions that a daemon does for somebody elsewhere are operations;
`remote_operations.py` begins them. `api` reaches whatever has no command of its own.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from appliance.base.errors import UsageError

_METHODS = ("GET", "POST", "PUT", "DELETE")


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    group = commands.add_parser("operation", help="restores and recoveries that an appliance does")
    verbs = group.add_subparsers(metavar="VERB", required=True)

    listing = verbs.add_parser("list", parents=[common], help="list them, newest first")
    listing.add_argument(
        "--limit", type=int, default=50, metavar="N", help="the newest N (default: 50)"
    )
    listing.set_defaults(run=run_list)

    showing = verbs.add_parser("show", parents=[common], help="everything about one")
    showing.add_argument("id", metavar="OPERATION")
    showing.add_argument("--wait", action="store_true", help="until it has ended")
    showing.set_defaults(run=run_show)

    cancelling = verbs.add_parser("cancel", parents=[common], help="end one in order")
    cancelling.add_argument("id", metavar="OPERATION")
    cancelling.set_defaults(run=run_cancel)

    calling = commands.add_parser("api", parents=[common], help="any call of an appliance's API")
    calling.add_argument("method", choices=_METHODS)
    calling.add_argument("path", metavar="PATH", help="such as vm-runs?vm=web")
    calling.add_argument("--body", type=Path, metavar="FILE", help="JSON that goes with it")
    calling.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="keep the answer as it comes"
    )
    calling.set_defaults(run=run_api)


def run_list(args: argparse.Namespace) -> int:
    raise _elsewhere()


def run_show(args: argparse.Namespace) -> int:
    raise _elsewhere()


def run_cancel(args: argparse.Namespace) -> int:
    raise _elsewhere()


def run_api(args: argparse.Namespace) -> int:
    raise _elsewhere()


def _elsewhere() -> UsageError:
    return UsageError("name the appliance whose API it is: --appliance")
