"""What a job file would change: entry by entry, field by field. Pure.

What the file does not name stays as it is. A field that the file leaves out has its default, so
the difference is between what is saved and exactly what the file says. A password is compared, and
said to be changed, but never shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from pydantic import BaseModel

from appliance.catalog.job import Job
from appliance.catalog.policy import Policy
from appliance.service.job_file import HostEntry, JobFile, fields_of

_WHERE_FROM = {"password_file"}  # where a password came from is no property of the host


class EntryAction(StrEnum):
    ADD = "add"
    CHANGE = "change"
    SAME = "same"


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldChange:
    field: str  # with dots: `schedule.at`
    old: Any  # as in JSON; None where there was none
    new: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class EntryChange:
    section: str  # host, policy or job
    name: str
    action: EntryAction
    fields: tuple[FieldChange, ...]

    def as_json(self) -> dict[str, Any]:
        return {
            "section": self.section,
            "name": self.name,
            "action": self.action,
            "fields": [
                {"field": field.field, "old": field.old, "new": field.new} for field in self.fields
            ],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedState:
    """What there is, in the shape of the file."""

    hosts: Mapping[str, HostEntry]
    policies: Mapping[str, Policy]
    jobs: Mapping[str, Job]


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFileChanges:
    entries: tuple[EntryChange, ...]  # of all entries of the file, in its order
    not_in_file: tuple[str, ...]  # `job.NAME`: saved, and left as they are

    @property
    def changed(self) -> tuple[EntryChange, ...]:
        return tuple(entry for entry in self.entries if entry.action is not EntryAction.SAME)

    def as_json(self) -> dict[str, Any]:
        return {
            "changes": [entry.as_json() for entry in self.changed],
            "same": [
                f"{entry.section}.{entry.name}"
                for entry in self.entries
                if entry.action is EntryAction.SAME
            ],
            "not_in_file": list(self.not_in_file),
        }


def compare(file: JobFile, saved: SavedState, new_passwords: Sequence[str] = ()) -> JobFileChanges:
    """`new_passwords`: names of registered hosts whose password differs from the saved one."""
    entries = [
        *(_compare_host(entry, saved.hosts.get(entry.name), new_passwords) for entry in file.hosts),
        *(_compare("policy", entry, saved.policies.get(entry.name)) for entry in file.policies),
        *(_compare("job", entry, saved.jobs.get(entry.name)) for entry in file.jobs),
    ]
    named = {(entry.section, entry.name) for entry in entries}
    there = [
        *(("host", name) for name in saved.hosts),
        *(("policy", name) for name in saved.policies),
        *(("job", name) for name in saved.jobs),
    ]
    return JobFileChanges(
        entries=tuple(entries),
        not_in_file=tuple(
            f"{section}.{name}" for section, name in there if (section, name) not in named
        ),
    )


def _compare_host(
    entry: HostEntry, saved: HostEntry | None, new_passwords: Sequence[str]
) -> EntryChange:
    change = _compare("host", entry, saved, ignore=_WHERE_FROM)
    if entry.name not in new_passwords:
        return change
    password = FieldChange(field="password", old="(saved)", new="(another one)")
    return EntryChange(
        section="host",
        name=entry.name,
        action=EntryAction.CHANGE,
        fields=(*change.fields, password),
    )


def _compare(
    section: str,
    entry: BaseModel,
    saved: BaseModel | None,
    ignore: Iterable[str] = (),
) -> EntryChange:
    name = str(getattr(entry, "name"))  # noqa: B009  (a field that all of them have)
    if saved is None:
        new = _flat(fields_of(entry))
        fields = [FieldChange(field=key, old=None, new=value) for key, value in new.items()]
        return EntryChange(section=section, name=name, action=EntryAction.ADD, fields=tuple(fields))
    old, new = _all_fields(saved, ignore), _all_fields(entry, ignore)
    fields = [
        FieldChange(field=key, old=old.get(key), new=new.get(key))
        for key in dict.fromkeys([*old, *new])
        if old.get(key) != new.get(key)
    ]
    action = EntryAction.CHANGE if fields else EntryAction.SAME
    return EntryChange(section=section, name=name, action=action, fields=tuple(fields))


def _all_fields(entry: BaseModel, ignore: Iterable[str]) -> dict[str, Any]:
    return _flat(entry.model_dump(mode="json", exclude={"name", *ignore}))


def _flat(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"schedule": {"at": […]}}` as `{"schedule.at": […]}`."""
    flat: dict[str, Any] = {}
    for key, value in fields.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
