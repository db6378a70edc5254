"""`--appliance URL`: commands that talk to an appliance elsewhere, through its API.

A table says what does a command there in place of what does it here; a command that is not in it
needs the machine itself, and says so. `--json` prints what the API answers.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from appliance.base.errors import UsageError
from appliance.base.secret import Secret
from appliance.cli import (
    approval_commands,
    certificate_commands,
    host_commands,
    instant_commands,
    instant_start,
    job_commands,
    notify_commands,
    operation_commands,
    point_commands,
    remote_hosts,
    remote_jobs,
    remote_operations,
    remote_points,
    remote_proofs,
    remote_settings,
    repo_commands,
    run_commands,
    vm_commands,
    vm_restore_commands,
)
from appliance.cli.options import read_secret_file

if TYPE_CHECKING:
    from appliance.service.appliance_client import ApplianceClient

Run = Callable[[argparse.Namespace], int]
RemoteRun = Callable[[argparse.Namespace, "ApplianceClient"], int]

REMOTE: Mapping[Run, RemoteRun] = {
    host_commands.run_list: remote_hosts.list_hosts,
    host_commands.run_add: remote_hosts.add_host,
    host_commands.run_test: remote_hosts.test_host,
    host_commands.run_remove: remote_hosts.remove_host,
    vm_commands.run_list: remote_hosts.list_vms,
    point_commands.run_list: remote_points.list_points,
    point_commands.run_show: remote_points.show_point,
    point_commands.run_forget: remote_points.forget_points,
    repo_commands.run_stats: remote_points.show_stats,
    certificate_commands.run_list: remote_proofs.list_certificates,
    certificate_commands.run_show: remote_proofs.show_certificate,
    instant_commands.run_list: remote_points.list_sessions,
    instant_start.run_start: remote_operations.start_session,
    instant_commands.run_finalise: remote_operations.finalise_session,
    instant_commands.run_discard: remote_operations.discard_session,
    vm_restore_commands.run_restore_vm: remote_operations.restore_vm,
    operation_commands.run_list: remote_operations.list_operations,
    operation_commands.run_show: remote_operations.show_operation,
    operation_commands.run_cancel: remote_operations.cancel_operation,
    operation_commands.run_api: remote_operations.call_api,
    job_commands.run_list: remote_jobs.list_jobs,
    job_commands.run_show: remote_jobs.show_job,
    job_commands.run_create: remote_jobs.create_job,
    job_commands.run_apply: remote_jobs.apply_jobs,
    job_commands.run_run: remote_jobs.run_job,
    job_commands.run_change: remote_jobs.change_job,
    job_commands.run_export: remote_jobs.export_jobs,
    run_commands.run_list: remote_jobs.list_runs,
    run_commands.run_show: remote_jobs.show_run,
    run_commands.run_cancel: remote_jobs.cancel_run,
    notify_commands.run_list: remote_settings.list_channels,
    notify_commands.run_add: remote_settings.add_channel,
    notify_commands.run_test: remote_settings.test_channel,
    notify_commands.run_remove: remote_settings.remove_channel,
    approval_commands.run_list: remote_settings.list_approvals,
    approval_commands.run_require: remote_settings.require_approval,
}


def run_command(args: argparse.Namespace) -> int:
    """Run it here, or at the appliance that option or environment name. Raises ApplianceError."""
    url = args.appliance or os.environ.get("HOLDFAST_APPLIANCE")
    if not url:
        return int(args.run(args))
    remote = REMOTE.get(args.run)
    if remote is None:
        raise UsageError(
            "this command needs the appliance's own machine: run it there, without --appliance"
        )
    return remote(args, _client(args, url))


def _client(args: argparse.Namespace, url: str) -> ApplianceClient:
    from appliance.service.appliance_client import ApplianceClient

    fingerprint = args.appliance_fingerprint or os.environ.get("HOLDFAST_APPLIANCE_FINGERPRINT")
    return ApplianceClient(url, _token(args), fingerprint)


def _token(args: argparse.Namespace) -> Secret:
    """From a file or the environment; in the arguments every user of the machine would see it."""
    path = args.token_file or os.environ.get("HOLDFAST_TOKEN_FILE")
    if path:
        secret = read_secret_file(Path(path))
    elif text := os.environ.get("HOLDFAST_TOKEN"):
        secret = Secret.of_text(text)
    else:
        raise UsageError("an appliance elsewhere needs a token: --token-file or $HOLDFAST_TOKEN")
    raw = secret.reveal()
    if not raw.isascii() or any(byte <= 32 or byte == 127 for byte in raw):
        raise UsageError("the token holds characters that no token has")
    return secret
