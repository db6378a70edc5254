"""What a daemon that a command starts is told: the same state folder, repository and secret files.

Secrets that came by the environment go by the environment.
"""

from __future__ import annotations

import argparse

from appliance.cli.options import home_path, repository_path


def daemon_words(args: argparse.Namespace) -> list[str]:
    """What follows `holdfast serve`."""
    words = [
        *("--home", str(home_path(args).absolute())),
        *("--repo", str(repository_path(args).absolute())),
    ]
    for option, path in (
        ("--passphrase-file", args.passphrase_file),
        ("--recovery-key-file", args.recovery_key_file),
    ):
        if path is not None:
            words += [option, str(path.absolute())]
    address = getattr(args, "address", "")
    if address:
        words += ["--bind", address]
    reserve = getattr(args, "reserve", None)
    if reserve:
        words += ["--reserve", reserve]
    return words
