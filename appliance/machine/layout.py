"""Where what lies on the appliance's system disk; tests put all of it under another root."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from appliance.base.atomic import replace_file
from appliance.machine.firewall import FirewallState


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    root: Path = Path("/")

    @property
    def configuration(self) -> Path:
        return self.root / "etc/holdfast"

    @property
    def settings(self) -> Path:
        """The cache: it is there once somebody has set this machine up."""
        return self.configuration / "machine.json"

    @property
    def firewall(self) -> Path:
        """The rules of the settings that were applied last."""
        return self.configuration / "firewall.nft"

    @property
    def passphrase(self) -> Path:
        return self.configuration / "repository.passphrase"

    @property
    def data_disk(self) -> Path:
        return self.configuration / "data-disk.uuid"

    @property
    def update_key(self) -> Path:
        return self.configuration / "update.pub"

    @property
    def environments(self) -> Path:
        return self.root / "opt/holdfast"

    @property
    def home(self) -> Path:
        return self.root / "var/lib/holdfast"

    @property
    def status(self) -> Path:
        return self.root / "run/holdfast-machine/status.json"

    @property
    def setup_token(self) -> Path:
        return self.root / "run/holdfast/setup-token"


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """What preparing the machine has come to, for the console and the security check."""

    firewall: FirewallState
    configured: bool = False
    problems: tuple[str, ...] = ()

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, json.dumps(asdict(self)).encode(), mode=0o644)


def read_status(path: Path) -> Status | None:
    """None before the machine was prepared."""
    try:
        document = json.loads(path.read_bytes())
        return Status(
            firewall=FirewallState(document["firewall"]),
            configured=bool(document["configured"]),
            problems=tuple(map(str, document["problems"])),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
