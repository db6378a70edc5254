"""The options of `job create`, and the job and policy that they say."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from appliance.base.errors import UsageError

if TYPE_CHECKING:
    from appliance.catalog.job import Job
    from appliance.catalog.policy import Policy

_KINDS = ("backup", "verification", "cbt-audit", "retention", "gc", "check")
_OF_VMS = ("backup", "cbt-audit")
_RULES = ("last", "hourly", "daily", "weekly", "monthly", "yearly")


def add_create_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("--kind", choices=_KINDS, default="backup")
    parser.add_argument(
        "--policy", metavar="P", help="a saved policy (default: a new one, from the options here)"
    )
    select = parser.add_argument_group("which VMs; each option may be repeated")
    for option, metavar, does in (
        ("--vm", "PATTERN", "name, FOLDER/NAME, or a glob such as 'web*'"),
        ("--folder", "PATTERN", "all VMs in the folder and beneath"),
        ("--tag", "T", "VMs that carry this tag (NAME or CATEGORY/NAME)"),
        ("--runs-on", "PATTERN", "VMs that this ESXi host runs"),
        ("--host", "H", "of these registered hosts only"),
        ("--exclude", "PATTERN", "not these VMs"),
        ("--exclude-tag", "T", "not the VMs that carry this tag"),
    ):
        select.add_argument(option, action="append", default=[], metavar=metavar, help=does)
    select.add_argument("--everything", action="store_true", help="all VMs")
    policy = parser.add_argument_group("policy; see the file of `job apply` for all there is")
    policy.add_argument(
        "--at", action="append", default=[], metavar="HH:MM", help="when it is due, each day"
    )
    policy.add_argument("--every", type=int, metavar="MINUTES", help="or every so many minutes")
    policy.add_argument(
        "--window",
        action="append",
        default=[],
        metavar="W",
        help="begin within it only, such as 'mon-fri 20:00-06:00'",
    )
    policy.add_argument("--time-zone", metavar="Z", help="such as Europe/Berlin (default: UTC)")
    for rule in _RULES:
        policy.add_argument(f"--keep-{rule}", type=int, metavar="N")
    proof = parser.add_argument_group("of a verification; groups and single VMs: see the file")
    proof.add_argument("--where", choices=("sandbox", "hypervisor", "both"))
    proof.add_argument(
        "--probe", action="append", default=[], metavar="PROBE", help="as of `holdfast verify`"
    )
    proof.add_argument("--check-file-systems", action="store_true")
    proof.add_argument("--hash-share", type=float, metavar="SHARE", help="of the chunks, 0 to 1")
    proof.add_argument("--rto", metavar="TIME", help="warn when recovering takes longer: 5min")
    proof.add_argument("--rpo", metavar="TIME", help="warn when the newest point is older: 26h")
    parser.add_argument(
        "--read-data", action="store_true", help="of a check: read and prove every byte"
    )


def policy_of(args: argparse.Namespace) -> Policy | None:
    """The new policy that the options say, called as the job; None: they say none.

    Raises UsageError.
    """
    from pydantic import ValidationError

    from appliance.catalog.policy import Policy
    from appliance.catalog.validation import describe

    fields: dict[str, Any] = {}
    if args.at or args.every is not None:
        fields["schedule"] = {"at": args.at, "every_minutes": args.every}
    if args.window:
        fields["windows"] = args.window
    if args.time_zone:
        fields["time_zone"] = args.time_zone
    counts = {f"keep_{rule}": getattr(args, f"keep_{rule}") for rule in _RULES}
    kept = {name: count for name, count in counts.items() if count is not None}
    if kept:
        fields["retention"] = kept
    fields |= {name: getattr(args, name) for name in ("rto", "rpo") if getattr(args, name)}
    if not fields:
        return None
    if args.policy:
        raise UsageError("--policy names a saved policy; leave out the options of a new one")
    try:
        return Policy.model_validate({"name": args.name, **fields})
    except ValidationError as error:
        raise UsageError(describe(error)) from error


def job_of(args: argparse.Namespace) -> Job:
    """Raises UsageError."""
    from pydantic import ValidationError

    from appliance.catalog.job import JOB
    from appliance.catalog.validation import describe

    own_policy = args.name if policy_of(args) is not None else None
    fields: dict[str, Any] = {
        "name": args.name,
        "kind": args.kind,
        "policy": args.policy or own_policy,
    }
    selection = _selection(args)
    if selection:
        fields["select"] = selection
    if args.read_data:
        fields["read_data"] = True
    proof = {
        "where": args.where,
        "probes": args.probe,
        "check_file_systems": args.check_file_systems,
        "hash_share": args.hash_share,
    }
    fields |= {name: value for name, value in proof.items() if value}
    try:
        return JOB.validate_python(fields)
    except ValidationError as error:
        raise UsageError(describe(error)) from error


def _selection(args: argparse.Namespace) -> dict[str, Any]:
    """Only what was said; the model knows what its kind of job takes."""
    if args.kind not in _OF_VMS:
        fields: dict[str, Any] = {"names": args.vm, "exclude": args.exclude}
        fields |= {"tags": args.tag, "folders": args.folder, "hosts": args.host}
        return {name: value for name, value in fields.items() if value}
    exclude = {"names": args.exclude, "tags": args.exclude_tag}
    return {
        "names": args.vm,
        "folders": args.folder,
        "tags": args.tag,
        "runs_on": args.runs_on,
        "hosts": args.host,
        "everything": args.everything,
        "exclude": exclude,
    }
