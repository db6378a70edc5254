"""An application as a TOML file: its guests in the order in which they boot.

    [[guest]]
    vm = "db"                     # its newest point; or point = "2026…"
    probes = ["postgres"]
    memory_mib = 2048

    [[guest]]
    vm = "web"
    after = ["db"]
    probes = ["http:80/ text=Welcome"]
    scripts = ["curl -s 10.0.2.15 => ok"]
    rto = "5min"

The model is the border: what it has accepted becomes a plan.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from appliance.base.errors import UsageError
from appliance.base.units import parse_duration
from appliance.jobs.verification_plan import BootOptions, GuestPlan, VerificationPlan
from appliance.sandbox.probes import parse_probe
from appliance.sandbox.serial_script import parse_script
from appliance.sandbox.spec import PLACES_MAX, DiskInterface

_FILE_BYTES_MAX = 1 << 20
_Text = Annotated[str, Field(min_length=1, max_length=2048)]
_Texts = Annotated[tuple[_Text, ...], Field(max_length=64)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Guest(_Strict):
    vm: _Text | None = None
    point: _Text | None = None
    name: _Text | None = None
    probes: _Texts = Field(min_length=1)
    scripts: _Texts = ()
    after: _Texts = ()
    memory_mib: int = 512
    cpus: int = 1
    disk_interface: DiskInterface = DiskInterface.VIRTIO
    timeout: _Text = "10min"
    hash_share: float = Field(default=0.0, ge=0, le=1)
    check_file_systems: bool = False
    rto: _Text | None = None
    rpo: _Text | None = None

    @model_validator(mode="after")
    def _names_one_point(self) -> Self:
        if (self.vm is None) == (self.point is None):
            raise ValueError("a guest has either vm or point")
        return self

    def plan(self) -> GuestPlan:
        return GuestPlan(
            point=self.point or f"latest:{self.vm}",
            name=self.name or self.vm or self.point or "",
            boot=BootOptions(
                memory_mib=self.memory_mib,
                cpus=self.cpus,
                disk_interface=self.disk_interface,
                deadline_s=parse_duration(self.timeout).total_seconds(),
            ),
            probes=tuple(parse_probe(text) for text in self.probes),
            scripts=tuple(parse_script(text) for text in self.scripts),
            after=self.after,
            hash_share=self.hash_share,
            check_file_systems=self.check_file_systems,
            rto=parse_duration(self.rto) if self.rto else None,
            rpo=parse_duration(self.rpo) if self.rpo else None,
        )


class _Application(_Strict):
    guest: Annotated[tuple[_Guest, ...], Field(min_length=1, max_length=PLACES_MAX)]


def read_application(path: Path) -> VerificationPlan:
    """Raises UsageError, saying where in the file what is wrong."""
    try:
        with path.open("rb") as file:
            raw = file.read(_FILE_BYTES_MAX + 1)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    if len(raw) > _FILE_BYTES_MAX:
        raise UsageError(f"{path}: larger than {_FILE_BYTES_MAX} bytes")
    try:
        application = _Application.model_validate(tomllib.loads(raw.decode()))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: {_what(error)}") from error
    try:
        return VerificationPlan(guests=tuple(guest.plan() for guest in application.guest))
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def _what(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
    return str(error)
