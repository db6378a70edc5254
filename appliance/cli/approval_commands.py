"""`holdfast approval …`: what needs a second administrator."""

from __future__ import annotations

import argparse
from typing import Any

from appliance.cli.administrator import add_account_options, administrator
from appliance.cli.options import home_path, open_repository
from appliance.cli.output import ExitCode, show, table


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    group = commands.add_parser("approval", help="what a second administrator has to approve")
    verbs = group.add_subparsers(metavar="VERB", required=True)

    listing = verbs.add_parser("list", parents=[common], help="requests, newest first")
    listing.set_defaults(run=run_list)

    deciding = verbs.add_parser("decide", parents=[common], help="approve or refuse a request")
    deciding.add_argument("number", type=int, metavar="REQUEST")
    deciding.add_argument("decision", choices=("approve", "refuse"))
    add_account_options(deciding)
    deciding.set_defaults(run=run_decide)

    requiring = verbs.add_parser(
        "require", parents=[common], help="say whether deletion by hand needs a second one"
    )
    requiring.add_argument("guard", choices=("second-administrator", "nothing"))
    add_account_options(requiring)
    requiring.set_defaults(run=run_require)


def run_list(args: argparse.Namespace) -> int:
    from appliance.service.approval_documents import approval_document
    from appliance.service.home import Home

    with Home(home_path(args)).open_catalog() as catalog:
        found = catalog.approvals.list(limit=1000)
        guard = catalog.approvals.guard()

    def text() -> str:
        rows = [
            (
                str(each.id),
                each.kind,
                str(len(each.objects)),
                each.requested_by,
                f"{each.requested_at:%Y-%m-%d %H:%M}",
                f"{each.expires_at:%Y-%m-%d %H:%M}",
                each.state,
                each.decided_by or "",
            )
            for each in found
        ]
        header = ("REQUEST", "WHAT", "COUNT", "BY", "ASKED (UTC)", "EXPIRES", "STATE", "DECIDED BY")
        return f"deletion by hand requires: {guard}\n{table(rows, header)}"

    show(args, {"require": guard, "requests": [approval_document(each) for each in found]}, text)
    return ExitCode.SUCCESS


def run_decide(args: argparse.Namespace) -> int:
    from appliance.service.approval_documents import approval_document
    from appliance.service.console_deletion import console_deletion
    from appliance.service.home import Home

    with Home(home_path(args)).open_catalog() as catalog:
        by = administrator(args, catalog)
        with open_repository(args) as repository:
            deletion = console_deletion(catalog, repository, home_path(args))
            decided = (
                deletion.approve(args.number, by=by)
                if args.decision == "approve"
                else deletion.refuse(args.number, by=by)
            )
        catalog.audit.append(
            actor=by, address="console", action=f"approval {args.decision}", object=str(args.number)
        )
    show(args, approval_document(decided), lambda: f"request {decided.id} is {decided.state}")
    return ExitCode.SUCCESS


def run_require(args: argparse.Namespace) -> int:
    from appliance.catalog.approvals import Guard
    from appliance.service.approval_documents import asked_document, asked_words
    from appliance.service.console_deletion import console_deletion
    from appliance.service.home import Home

    with Home(home_path(args)).open_catalog() as catalog:
        by = administrator(args, catalog)
        with open_repository(args) as repository:
            deletion = console_deletion(catalog, repository, home_path(args))
            asked = deletion.require(Guard(args.guard), by=by)
        catalog.audit.append(
            actor=by, address="console", action="approval require", object=args.guard
        )
    done = f"deletion by hand requires: {args.guard}"
    show(args, asked_document(asked), lambda: asked_words(asked, done))
    return ExitCode.SUCCESS
