"""`job …` and `run …` at an appliance elsewhere."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from appliance.base.errors import UsageError
from appliance.cli.job_commands import changes_text
from appliance.cli.job_options import job_of, policy_of
from appliance.cli.output import ExitCode, described, note, show, table
from appliance.cli.run_commands import detail_lines, show_begun

if TYPE_CHECKING:
    from appliance.service.appliance_client import ApplianceClient


def list_jobs(args: argparse.Namespace, client: ApplianceClient) -> int:
    jobs = client.get("jobs")

    def text() -> str:
        rows = [
            (each["name"], each["kind"], "yes" if each["enabled"] else "no", each["schedule"],
             each["next_run_at"] or "-",
             (each["latest_run"] or {}).get("outcome") or "never run")
            for each in jobs
        ]  # fmt: skip
        return table(rows, ("JOB", "KIND", "ENABLED", "SCHEDULE", "NEXT RUN", "LATEST"))

    show(args, jobs, text)
    return ExitCode.SUCCESS


def show_job(args: argparse.Namespace, client: ApplianceClient) -> int:
    job = client.get("jobs", args.name)
    show(args, job, lambda: described(job))
    return ExitCode.SUCCESS


def create_job(args: argparse.Namespace, client: ApplianceClient) -> int:
    policy, job = policy_of(args), job_of(args)
    body = {"job": job.model_dump(mode="json", exclude_unset=True)}
    if policy is not None:
        body["policy"] = policy.model_dump(mode="json", exclude_unset=True)
    made = client.post("jobs", body=body)
    show(args, made, lambda: described(made))
    return ExitCode.SUCCESS


def apply_jobs(args: argparse.Namespace, client: ApplianceClient) -> int:
    """Policies and jobs of the file; its hosts have to be there as they are."""
    try:
        text = args.file.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{args.file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{args.file} is not UTF-8") from error
    done = client.post("job-file", body={"text": text, "dry_run": args.dry_run})
    show(args, done, lambda: changes_text(done["changed"]))
    if done["not_in_file"]:
        note(f"not in the file, left as they are: {', '.join(done['not_in_file'])}")
    return ExitCode.SUCCESS


def run_job(args: argparse.Namespace, client: ApplianceClient) -> int:
    return show_begun(args, client, client.run_job(args.name))


def change_job(args: argparse.Namespace, client: ApplianceClient) -> int:
    if args.verb == "remove":
        client.delete("jobs", args.name)
    else:
        client.post("jobs", args.name, args.verb)
    show(args, {"job": args.name, "done": args.verb}, lambda: f"{args.verb}d {args.name}")
    return ExitCode.SUCCESS


def export_jobs(args: argparse.Namespace, client: ApplianceClient) -> int:
    file = client.get("job-file")
    show(args, file, lambda: str(file["text"]).rstrip())
    return ExitCode.SUCCESS


def list_runs(args: argparse.Namespace, client: ApplianceClient) -> int:
    runs = list(reversed(client.get("runs", job=args.job, limit=max(1, min(args.limit, 1000)))))

    def text() -> str:
        rows = [
            (run["run_id"], run["job"], run["kind"], run["cause"], (run["started_at"] or "-")[:19],
             run["outcome"] or run["state"], run["error_code"] or "")
            for run in runs
        ]  # fmt: skip
        return table(rows, ("RUN", "JOB", "KIND", "CAUSE", "STARTED (UTC)", "END", "ERROR"))

    show(args, runs, text)
    return ExitCode.SUCCESS


def show_run(args: argparse.Namespace, client: ApplianceClient) -> int:
    run = client.run(args.id)
    show(args, run, lambda: "\n".join(detail_lines(run)))
    return ExitCode.SUCCESS


def cancel_run(args: argparse.Namespace, client: ApplianceClient) -> int:
    client.cancel_run(args.id)
    show(args, {"cancelled": args.id}, lambda: f"asked run {args.id} to end")
    return ExitCode.SUCCESS
