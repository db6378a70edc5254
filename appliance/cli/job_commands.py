"""`holdfast job …`: saved jobs and policies, which the daemon runs."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.base.errors import UsageError
from appliance.cli.job_options import add_create_options, job_of, policy_of
from appliance.cli.options import home_path
from appliance.cli.output import ExitCode, note, show, table
from appliance.cli.run_commands import show_begun

if TYPE_CHECKING:
    from appliance.catalog.catalog import Catalog
    from appliance.service.job_book import JobBook


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    group = commands.add_parser("job", help="saved jobs: what is done by itself")
    verbs = group.add_subparsers(metavar="VERB", required=True)

    listing = verbs.add_parser("list", parents=[common], help="list them, with their next run")
    listing.set_defaults(run=run_list)

    showing = verbs.add_parser("show", parents=[common], help="everything about one")
    showing.add_argument("name", metavar="NAME")
    showing.set_defaults(run=run_show)

    creating = verbs.add_parser("create", parents=[common], help="save a new one")
    add_create_options(creating)
    creating.set_defaults(run=run_create)

    applying = verbs.add_parser(
        "apply", parents=[common], help="make hosts, policies and jobs as a TOML file says"
    )
    applying.add_argument("file", type=Path, metavar="FILE")
    applying.add_argument(
        "--dry-run", action="store_true", help="show the difference, change nothing"
    )
    applying.set_defaults(run=run_apply)

    exporting = verbs.add_parser(
        "export", parents=[common], help="print hosts, policies and jobs as such a file"
    )
    exporting.set_defaults(run=run_export)

    starting = verbs.add_parser("run", parents=[common], help="let the daemon run one now")
    starting.add_argument("name", metavar="NAME")
    starting.add_argument("--wait", action="store_true", help="until the run has ended")
    starting.set_defaults(run=run_run)

    for verb, does in (
        ("enable", "let its schedule count from now on"),
        ("disable", "let it rest until it is enabled"),
        ("remove", "forget it; its recovery points stay"),
    ):
        parser = verbs.add_parser(verb, parents=[common], help=does)
        parser.add_argument("name", metavar="NAME")
        parser.set_defaults(run=run_change, verb=verb)


@contextmanager
def _book(args: argparse.Namespace) -> Iterator[tuple[Catalog, JobBook]]:
    from appliance.service.home import Home
    from appliance.service.job_book import JobBook

    home = home_path(args)
    with Home(home).open_catalog() as catalog:
        yield catalog, JobBook(catalog, home)


def _tell_daemon(args: argparse.Namespace) -> None:
    from appliance.service.daemon_client import DaemonClient, DaemonUnreachableError

    with suppress(DaemonUnreachableError):
        DaemonClient(home_path(args)).look_at_jobs()


def run_list(args: argparse.Namespace) -> int:
    from appliance.service.job_documents import job_document
    from appliance.service.job_service import job_status

    with _book(args) as (catalog, _):
        found = [job_status(catalog, saved) for saved in catalog.jobs.list()]

    def text() -> str:
        rows = [
            (
                status.saved.name,
                status.saved.job.kind,
                "on" if status.saved.job.enabled else "off",
                status.saved.policy.words,
                f"{status.next_run_at:%Y-%m-%d %H:%M} UTC" if status.next_run_at else "-",
                str(status.open_run.state)
                if status.open_run
                else str(status.latest_run.outcome if status.latest_run else "-"),
            )
            for status in found
        ]
        return table(rows, ("JOB", "KIND", "", "POLICY", "NEXT RUN", "LATEST"))

    show(args, [job_document(status) for status in found], text)
    return ExitCode.SUCCESS


def run_show(args: argparse.Namespace) -> int:
    from appliance.service.job_documents import job_detail
    from appliance.service.job_file import JobFile, write_job_file
    from appliance.service.job_service import job_status

    with _book(args) as (catalog, _):
        status = job_status(catalog, catalog.jobs.get(args.name))

    def text() -> str:
        saved = status.saved
        policies = (saved.policy,) if saved.job.policy else ()
        file = JobFile(folder=Path(), hosts=(), policies=policies, jobs=(saved.job,))
        lines = [f"# {saved.policy.words}"]
        if status.next_run_at:
            lines.append(f"# next run {status.next_run_at:%Y-%m-%d %H:%M} UTC")
        if status.latest_run:
            lines.append(f"# latest run {status.latest_run.run_id}: {status.latest_run.outcome}")
        return "\n".join([*lines, "", write_job_file(file).rstrip()])

    show(args, job_detail(status), text)
    return ExitCode.SUCCESS


def run_create(args: argparse.Namespace) -> int:
    policy, job = policy_of(args), job_of(args)
    with _book(args) as (catalog, book):
        if any(saved.name == job.name for saved in catalog.jobs.list()):
            raise UsageError(f"there is a job {job.name!r} already")
        if policy is not None and any(p.name == policy.name for p in catalog.jobs.policies()):
            raise UsageError(f"there is a policy {policy.name!r} already; name it with --policy")
        book.save([policy] if policy else [], [job])
    _tell_daemon(args)
    return run_show(args)


def run_apply(args: argparse.Namespace) -> int:
    from appliance.service.job_file import read_job_file

    file = read_job_file(args.file)
    with _book(args) as (_, book):
        changes = book.changes(file) if args.dry_run else book.apply(file)
    if not args.dry_run:
        _tell_daemon(args)
    document = {"dry_run": args.dry_run, **changes.as_json()}
    show(args, document, lambda: changes_text(document["changes"]))
    if changes.not_in_file:
        note(f"not in the file, left as they are: {', '.join(changes.not_in_file)}")
    return ExitCode.SUCCESS


def changes_text(changes: Sequence[dict[str, Any]]) -> str:
    """What a job file would change, as documents; here and at an appliance elsewhere."""
    if not changes:
        return "nothing differs"
    return "\n".join(line for entry in changes for line in _entry_lines(entry))


def _entry_lines(entry: dict[str, Any]) -> Iterator[str]:
    yield f"{entry['action']} {entry['section']} {entry['name']}"
    for field in entry["fields"]:
        old = "" if field["old"] is None else f"{field['old']!r} -> "
        yield f"  {field['field']}: {old}{field['new']!r}"


def run_export(args: argparse.Namespace) -> int:
    from appliance.service.job_file import fields_of, write_job_file

    with _book(args) as (_, book):
        file = book.as_file()
    document = {
        "host": {entry.name: fields_of(entry) for entry in file.hosts},
        "policy": {entry.name: fields_of(entry) for entry in file.policies},
        "job": {entry.name: fields_of(entry) for entry in file.jobs},
    }
    show(args, document, lambda: write_job_file(file).rstrip())
    return ExitCode.SUCCESS


def run_run(args: argparse.Namespace) -> int:
    from appliance.service.daemon_client import DaemonClient

    client = DaemonClient(home_path(args))
    return show_begun(args, client, client.run_job(args.name))


def run_change(args: argparse.Namespace) -> int:
    with _book(args) as (_, book):
        {"enable": book.enable, "disable": book.disable, "remove": book.remove}[args.verb](
            args.name
        )
    _tell_daemon(args)
    done = f"{args.verb}d {args.name}"
    show(args, {"job": args.name, "done": args.verb}, lambda: done)
    return ExitCode.SUCCESS
