"""Hosts, policies and jobs as one TOML file: read, checked, and written.

    [host.vc1]        type, address, user, fingerprint, password_file
    [policy.nightly]  the fields of `catalog/policy.py`
    [job.all]         the fields of `catalog/job.py`

A password is never in the file: `password_file` names the file whose first line it is, absolute or
beside the TOML file. What is written can be read again, and means the same.

Thread model: pure, but for `read_job_file`.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from appliance.base.errors import UsageError
from appliance.catalog.hosts import LOGIN_SETTINGS, HostRecord
from appliance.catalog.job import JOB, Job
from appliance.catalog.policy import Policy
from appliance.catalog.schedule import Strict
from appliance.catalog.validation import describe
from appliance.sources.hyperv_node import NodeAddress, as_text, from_text

FILE_LIMIT_BYTES = 4 << 20
PASSWORD_FILE = "password_file"
"""Key in the settings of a host: where its password came from."""

_FINGERPRINT = re.compile(r"([0-9A-F]{2}:){31}[0-9A-F]{2}")
_DEFAULT_PORT = 443
_HYPERV_PORTS = {"https": 5986, "http": 5985}
_DEFAULT_LOGIN = {
    "login": "ntlm",
    "scheme": "https",
    "smb_port": "445",
    "smb_protection": "signed",
}
_Model = TypeVar("_Model")
_SECTIONS = ("host", "policy", "job")


def _canonical_fingerprint(text: str) -> str:
    if not text:
        return ""
    digits = text.replace(":", "").upper()
    canonical = ":".join(digits[at : at + 2] for at in range(0, len(digits), 2))
    if not _FINGERPRINT.fullmatch(canonical):
        raise ValueError("give the SHA-256 of the server's certificate, 64 hexadecimal digits")
    return canonical


def _canonical_address(text: str) -> str:
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port or _DEFAULT_PORT
    except ValueError:
        host, port = None, 0
    if not host or parts.path or parts.username is not None:
        raise ValueError(f"{text!r} is not an address or ADDRESS:PORT")
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _lacks_port(address: str) -> bool:
    try:
        return urlsplit(f"//{address}").port is None
    except ValueError:
        return False  # the field's own check says what is wrong


class NodeEntry(Strict):
    """Another node of a Hyper-V host's failover cluster."""

    address: str = Field(min_length=1, max_length=253)
    port: int = Field(ge=1, le=65535)
    smb_port: int = Field(default=445, ge=1, le=65535)
    fingerprint: Annotated[str, AfterValidator(_canonical_fingerprint)] = ""


class HostEntry(Strict):
    """A hypervisor as the file names it."""

    name: str
    type: Literal["vsphere", "hyperv"] = "vsphere"
    address: Annotated[str, AfterValidator(_canonical_address)]
    user: str = Field(min_length=1, max_length=256)
    fingerprint: Annotated[str, AfterValidator(_canonical_fingerprint)] = ""
    password_file: str | None = None  # needed to add the host or to change it
    # of Hyper-V hosts
    auth: Literal["ntlm", "kerberos", "credssp", "basic"] = "ntlm"
    scheme: Literal["https", "http"] = "https"
    smb_port: int = Field(default=445, ge=1, le=65535)
    smb_protection: Literal["signed", "encrypted"] = "signed"
    nodes: tuple[NodeEntry, ...] = Field(default=(), max_length=63)

    @model_validator(mode="before")
    @classmethod
    def _with_port(cls, fields: Any) -> Any:
        """A Hyper-V host has another default port."""
        if not isinstance(fields, Mapping) or fields.get("type") != "hyperv":
            return fields
        address = fields.get("address")
        if not isinstance(address, str) or not _lacks_port(address):
            return fields
        port = _HYPERV_PORTS.get(str(fields.get("scheme", "https")), _DEFAULT_PORT)
        return {**fields, "address": f"{address}:{port}"}

    @model_validator(mode="after")
    def _fits(self) -> Self:
        pinned = self.fingerprint and all(node.fingerprint for node in self.nodes)
        if self.scheme == "https" and not pinned:
            raise ValueError("give the fingerprint of the server's certificate")
        if self.type == "vsphere" and self.login_settings != _DEFAULT_LOGIN:
            raise ValueError(
                "auth, scheme, smb_port, smb_protection and nodes are of Hyper-V hosts"
            )
        return self

    @property
    def login_settings(self) -> dict[str, str]:
        """What the catalog keeps of a Hyper-V host's login (`LOGIN_SETTINGS`)."""
        nodes = [NodeAddress(**each.model_dump()) for each in self.nodes]
        return {
            "login": self.auth,
            "scheme": self.scheme,
            "smb_port": str(self.smb_port),
            "smb_protection": self.smb_protection,
            **({"nodes": as_text(nodes)} if nodes else {}),
        }

    @property
    def host_and_port(self) -> tuple[str, int]:
        parts = urlsplit(f"//{self.address}")
        return parts.hostname or "", parts.port or _DEFAULT_PORT


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFile:
    folder: Path  # what relative names in it start from
    hosts: tuple[HostEntry, ...]
    policies: tuple[Policy, ...]
    jobs: tuple[Job, ...]


def read_job_file(path: Path) -> JobFile:
    """Raises UsageError: not there, too large, or not right; the message says where."""
    try:
        with path.open("rb") as file:
            raw = file.read(FILE_LIMIT_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    if len(raw) > FILE_LIMIT_BYTES:
        raise UsageError(f"{path} is larger than {FILE_LIMIT_BYTES >> 20} MiB")
    try:
        return parse_job_file(raw.decode(), path.parent)
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8") from error
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def parse_job_file(text: str, folder: Path) -> JobFile:
    """Raises UsageError."""
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(str(error)) from error
    unknown = sorted(set(document) - set(_SECTIONS))
    if unknown:
        raise UsageError(f"{', '.join(unknown)}: there are only host, policy and job")
    return JobFile(
        folder=folder,
        hosts=tuple(_entries(document, "host", TypeAdapter(HostEntry))),
        policies=tuple(_entries(document, "policy", TypeAdapter(Policy))),
        jobs=tuple(_entries(document, "job", JOB)),
    )


def _entries(
    document: Mapping[str, Any], section: str, model: TypeAdapter[_Model]
) -> Iterator[_Model]:
    entries = document.get(section, {})
    if not isinstance(entries, dict):
        raise UsageError(f"{section}: write it as [{section}.NAME]")
    for name, fields in entries.items():
        about = f"{section}.{name}"
        if not isinstance(fields, dict):
            raise UsageError(f"{about}: not a table; write it as [{section}.NAME]")
        if "name" in fields:
            raise UsageError(f"{about}: its name is {name!r}; leave out the field name")
        try:
            yield model.validate_python({**fields, "name": name})
        except ValidationError as error:
            raise UsageError(describe(error, about)) from error


# Writing


def host_entry(record: HostRecord) -> HostEntry:
    """A registered host as the file would name it."""
    where = f"[{record.address}]" if ":" in record.address else record.address
    login = {key: record.settings[key] for key in LOGIN_SETTINGS if key in record.settings}
    login["auth"] = login.pop("login", "ntlm")
    nodes = from_text(login.pop("nodes", "[]"))
    return HostEntry.model_validate(
        {
            "name": record.name,
            "type": record.kind.value,
            "address": f"{where}:{record.port}",
            "user": record.user,
            "fingerprint": record.fingerprint,
            "password_file": record.settings.get(PASSWORD_FILE),
            **login,
            "smb_port": int(login.get("smb_port", "445")),
            "nodes": [asdict(node) for node in nodes],
        }
    )


def write_job_file(file: JobFile) -> str:
    """The file as text; values that are defaults are left out."""
    lines: list[str] = []
    for section, entries in (
        ("host", file.hosts),
        ("policy", file.policies),
        ("job", file.jobs),
    ):
        for entry in entries:
            lines += _table(f"{section}.{_key(entry.name)}", fields_of(entry))
    return "\n".join(lines).lstrip("\n") + "\n"


def fields_of(entry: BaseModel) -> dict[str, Any]:
    """What the file says of an entry, without its name."""
    fields = entry.model_dump(mode="json", exclude_defaults=True, exclude={"name"})
    kind = getattr(entry, "kind", None)
    return fields if kind is None else {"kind": str(kind), **fields}


def _table(path: str, fields: Mapping[str, Any]) -> list[str]:
    inner = {key: value for key, value in fields.items() if isinstance(value, dict)}
    lines = ["", f"[{path}]"]
    lines += [f"{_key(k)} = {_value(v)}" for k, v in fields.items() if k not in inner]
    for key, value in inner.items():
        lines += _table(f"{path}.{_key(key)}", value)
    return lines


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # JSON's escapes are TOML's, except that TOML wants this one escaped too
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, dict):
        pairs = ", ".join(f"{_key(key)} = {_value(inner)}" for key, inner in value.items())
        return f"{{ {pairs} }}"
    return repr(value)


def _key(text: str) -> str:
    return text if re.fullmatch(r"[A-Za-z0-9_-]+", text) else _value(text)
