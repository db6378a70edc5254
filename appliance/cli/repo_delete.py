"""`holdfast repo delete`: the whole repository, for who types what it is."""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from appliance.base.errors import UsageError
from appliance.cli.administrator import add_account_options, administrator
from appliance.cli.options import home_path, repository_path
from appliance.cli.output import ExitCode, note, show
from appliance.cli.prompts import interruptible

if TYPE_CHECKING:
    from appliance.repository.removal import RepositoryFacts

_SHORT_ID = 8


def add(verbs: Any, common: argparse.ArgumentParser) -> None:
    delete = verbs.add_parser(
        "delete", parents=[common], help="delete it with all its recovery points, for ever"
    )
    delete.add_argument(
        "--confirm",
        metavar="ID",
        help=f"its id, or the first {_SHORT_ID} characters of it (default: ask)",
    )
    add_account_options(delete)
    delete.set_defaults(run=run_delete)


def run_delete(args: argparse.Namespace) -> int:
    from appliance.catalog.approvals import Guard
    from appliance.repository.removal import repository_facts
    from appliance.service.approval_documents import asked_document, asked_words
    from appliance.service.deletion import Asked
    from appliance.service.home import Home
    from appliance.service.repository_deletion import (
        approved_deletion,
        ask_for_deletion,
        delete_repository,
    )

    home, path = home_path(args), repository_path(args)
    facts = repository_facts(path)
    approval, by = None, "console"
    with ExitStack() as stack:
        catalog = None
        if (home / "catalog.sqlite").exists():  # else there is no guard
            catalog = stack.enter_context(Home(home).open_catalog())
        if catalog is not None and catalog.approvals.guard() is not Guard.NOTHING:
            if not args.account:
                raise UsageError(
                    "deleting needs a second administrator's approval here; say who asks: --account"
                )
            by = administrator(args, catalog)
            approval = approved_deletion(catalog, facts.repository_id)
            if approval is None:
                asked = Asked(approval=ask_for_deletion(catalog, facts.repository_id, by=by))
                catalog.audit.append(
                    actor=by,
                    address="console",
                    action="ask to delete repository",
                    object=facts.repository_id,
                )
                show(args, asked_document(asked), lambda: asked_words(asked, ""))
                note("once it is approved, stop the daemon and give this command again")
                return ExitCode.SUCCESS
        _confirm(args, facts)
        if catalog is not None:  # before: afterwards there may be no room to say it
            catalog.audit.append(
                actor=by, address="console", action="delete repository", object=facts.repository_id
            )
        rest = delete_repository(home, path, facts.repository_id)
        if catalog is not None and approval is not None:
            catalog.approvals.done(approval.id)
    document = {
        "deleted": facts.repository_id,
        "repository": str(path),
        "point_count": facts.point_count,
        "left": list(rest),
    }
    show(args, document, lambda: f"deleted {path} with {facts.point_count} recovery points")
    if rest:
        note(f"not of the repository, left as it is: {', '.join(rest)}")
    return ExitCode.SUCCESS


def _confirm(args: argparse.Namespace, facts: RepositoryFacts) -> None:
    """Raises UsageError: it was not typed, or is another one's."""
    short = facts.repository_id[:_SHORT_ID]
    typed = args.confirm
    if typed is None:
        if not sys.stdin.isatty():
            raise UsageError(f"to delete repository {facts.repository_id} give --confirm {short}")
        note(
            f"{repository_path(args)} holds {facts.point_count} recovery points. "
            "Deleting it cannot be undone."
        )
        with interruptible():
            typed = input(f"type {short} to delete it: ")
    if typed.strip().lower() not in (short, facts.repository_id):
        raise UsageError(f"{typed!r} is not {short}; nothing was deleted")
