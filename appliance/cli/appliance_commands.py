"""Life of the appliance: `update`, `config export|import`, `adopt`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from appliance.base.errors import UsageError
from appliance.cli.options import home_path, passphrase, read_secret_file, recovery_key
from appliance.cli.output import ExitCode, note, show


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    update = commands.add_parser(
        "update", parents=[common], help="update this appliance from a signed bundle"
    )
    update.add_argument("file", type=Path, metavar="FILE")
    update.set_defaults(run=run_update)

    config = commands.add_parser("config", help="the configuration as one encrypted file")
    verbs = config.add_subparsers(metavar="VERB", required=True)
    for verb, text in (("export", "write it"), ("import", "take it over from another appliance")):
        command = verbs.add_parser(verb, parents=[common], help=text)
        command.add_argument("file", type=Path, metavar="FILE")
        command.add_argument(
            "--config-passphrase-file",
            type=Path,
            required=True,
            metavar="FILE",
            help="file with the passphrase of the bundle",
        )
        if verb == "import":
            command.add_argument(
                "--replace", action="store_true", help="although there is a configuration"
            )
        command.set_defaults(run=run_export if verb == "export" else run_import)

    adopt = commands.add_parser(
        "adopt", parents=[common], help="take over the repository of another appliance"
    )
    adopt.add_argument("repository", type=Path, metavar="REPO")
    adopt.set_defaults(run=run_adopt)


def run_update(args: argparse.Namespace) -> int:
    from appliance.machine.layout import Layout
    from appliance.machine.update import update
    from appliance.service.systemd_daemon import SystemdDaemon

    layout = Layout()
    note("checking the bundle and installing beside; the daemon restarts once")
    result = update(args.file, layout, SystemdDaemon(layout.home))
    show(
        args,
        {"before": result.before, "now": result.now},
        lambda: f"updated from {result.before} to {result.now}",
    )
    return ExitCode.SUCCESS


def run_export(args: argparse.Namespace) -> int:
    from appliance.service.config_bundle import export_config

    secret = read_secret_file(args.config_passphrase_file)
    size_bytes = export_config(home_path(args), args.file, secret)
    show(
        args,
        {"file": str(args.file), "size_bytes": size_bytes},
        lambda: f"wrote {args.file}; without its passphrase nobody can read it",
    )
    return ExitCode.SUCCESS


def run_import(args: argparse.Namespace) -> int:
    from appliance.service.config_bundle import import_config

    secret = read_secret_file(args.config_passphrase_file)
    done = import_config(home_path(args), args.file, secret, replace=args.replace)
    document = {
        "hosts": done.hosts,
        "jobs": done.jobs,
        "accounts": done.accounts,
        "kept": str(done.kept) if done.kept else None,
    }
    show(
        args,
        document,
        lambda: f"{done.hosts} hosts, {done.jobs} jobs and {done.accounts} accounts",
    )
    if done.kept:
        note(f"what was there before is in {done.kept}")
    return ExitCode.SUCCESS


def run_adopt(args: argparse.Namespace) -> int:
    from appliance.service.adoption import adopt

    if args.repo:
        raise UsageError("name the repository as the argument; it becomes HOME/repository")
    done = adopt(
        home_path(args),
        args.repository,
        passphrase=passphrase(args),
        recovery_key=recovery_key(args),
    )
    found = done.repository
    document = {
        "repository_id": found.repository_id,
        "encrypted": found.encrypted,
        "points": found.points,
        "vms": list(found.vms),
        "unreadable": list(found.unreadable),
        "set_aside": str(done.set_aside) if done.set_aside else None,
    }
    show(args, document, lambda: f"{found.points} recovery points of {len(found.vms)} VMs")
    for point in found.unreadable:
        note(f"warning: {point} cannot be read; run `holdfast repo check`")
    return ExitCode.WARNING if found.unreadable else ExitCode.SUCCESS
