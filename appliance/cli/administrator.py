"""Who acts at the console, where that has to be an administrator by name: account and password."""

from __future__ import annotations

import argparse
import getpass
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from appliance.base.errors import UsageError
from appliance.base.secret import Secret
from appliance.cli.options import read_secret_file, read_secret_line
from appliance.cli.prompts import interruptible

if TYPE_CHECKING:
    from appliance.catalog.catalog import Catalog


def add_account_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("who asks or decides")
    group.add_argument("--account", metavar="NAME", help="an administrator of the web interface")
    group.add_argument(
        "--password-file",
        type=Path,
        metavar="FILE",
        help="first line is its password (default: ask, or read standard input)",
    )
    group.add_argument(
        "--code", default="", metavar="N", help="of its second factor, if it has one"
    )


def administrator(args: argparse.Namespace, catalog: Catalog) -> str:
    """The name of the administrator who acts.

    Raises: UsageError: none is named, or it is none; WrongLoginError, AccountLockedError.
    """
    from appliance.service.deletion import is_administrator

    if not args.account:
        raise UsageError("name the administrator who asks: --account")
    account = catalog.accounts.verify(args.account, _password(args), args.code)
    if not is_administrator(catalog, account.name):
        raise UsageError(f"{account.name!r} is not an administrator")
    return account.name


def _password(args: argparse.Namespace) -> Secret:
    if args.password_file:
        return read_secret_file(args.password_file)
    if not sys.stdin.isatty():
        return read_secret_line(sys.stdin.buffer, "standard input")
    with interruptible():
        return Secret.of_text(getpass.getpass(f"password of {args.account}: "))
