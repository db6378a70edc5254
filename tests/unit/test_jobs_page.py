"""docs/jobs.md against the models: every field is there, and no other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from appliance.catalog.job import (
    BackupJob,
    CbtAuditJob,
    CheckJob,
    GcJob,
    PointSelection,
    RetentionJob,
    VerificationJob,
    VmSelection,
)
from appliance.catalog.policy import BandwidthRule, Ladder, Policy, Retention, Retries, Script
from appliance.catalog.schedule import Schedule
from appliance.catalog.vm_checks import Group, VmChecks
from appliance.service.job_file import HostEntry, parse_job_file

PAGE = (Path(__file__).parents[2] / "docs" / "jobs.md").read_text()

TABLES: dict[str, tuple[type[BaseModel], ...]] = {
    "### `[host.NAME]`\n\n| field |": (HostEntry,),
    "### `[policy.NAME]`\n\n| field |": (Policy,),
    "| field of `schedule` |": (Schedule,),
    "| field of `retention` |": (Retention,),
    "| field of `consistency` |": (Ladder,),
    "| field of `before` and `after` |": (Script,),
    "| field of `bandwidth` |": (BandwidthRule,),
    "| field of `retries` |": (Retries,),
    "### `[job.NAME]`\n\n| field |": (
        *(BackupJob, CbtAuditJob, RetentionJob, GcJob, CheckJob, VerificationJob),
    ),
    "| field of `vms` |": (VmChecks,),
    "| field of `groups` |": (Group,),
    "| field of `select`, of VMs |": (VmSelection,),
    "| field of `select`, of points |": (PointSelection,),
}


@pytest.mark.parametrize("head", TABLES)
def test_the_reference_names_every_field_and_no_other(head: str) -> None:
    """Who looks a field up finds it; what is there can be written."""
    table = PAGE.partition(head)[2].partition("\n\n")[0]
    listed = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    fields = {name for model in TABLES[head] for name in model.model_fields} - {"name"}
    assert sorted(listed) == sorted(fields)


@pytest.mark.parametrize("model", [model for models in TABLES.values() for model in models])
def test_the_defaults_of_numbers_and_switches_are_those_of_the_models(
    model: type[BaseModel],
) -> None:
    """A number in the column of defaults is the one that counts."""
    heads = [head for head, models in TABLES.items() if model in models]
    table = PAGE.partition(heads[0])[2].partition("\n\n")[0]
    shown = dict(re.findall(r"^\| `(\w+)` \| ([0-9.]+|true|false) \|", table, re.MULTILINE))
    for name, field in model.model_fields.items():
        if isinstance(field.default, bool | int | float) and name in shown:
            assert shown[name] == str(field.default).lower()


def test_the_example_is_a_file_that_can_be_applied() -> None:
    """It is parsed as `job apply` would."""
    text = PAGE.partition("$ cat jobs.toml\n")[2].partition("\n$ ")[0]
    file = parse_job_file(text, Path())
    assert [job.name for job in file.jobs] == ["all", "proof", "collect", "prove"]
    assert file.policies[0].words.startswith("daily at 22:00 (Europe/Berlin)")
