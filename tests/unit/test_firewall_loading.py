"""A firewall that cannot be loaded fails closed, and everybody who should know is told."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from appliance.cli import machine_main
from appliance.machine.console_page import ConsoleFacts, console_page
from appliance.machine.firewall import FirewallState, closed_rules, rules
from appliance.machine.firewall_loading import load_firewall
from appliance.machine.layout import Layout, Status, read_status
from appliance.machine.property_source import PropertySource
from appliance.machine.settings import MachineSettings, parse_properties
from appliance.service.security_check import SecurityCheck, SecurityFinding
from tests.support.api_server import api_serving

SETTINGS = parse_properties({"management_networks": "192.0.2.0/24"}).settings


class Nft:
    """A program of that name, first on the path: keeps what was loaded, refuses what it is told."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.refuse("")

    def refuse(self, pattern: str) -> None:
        program = self._folder / "nft"
        program.write_text(
            "#!/bin/sh\ncat > $0.given\n"
            + (
                f"if grep -q '{pattern}' $0.given; then echo 'syntax error' >&2; exit 1; fi\n"
                if pattern
                else ""
            )
            + "mv $0.given $0.loaded\n"
        )
        program.chmod(0o700)

    def forget(self) -> None:
        (self._folder / "nft.loaded").unlink()

    @property
    def loaded(self) -> str | None:
        file = self._folder / "nft.loaded"
        return file.read_text() if file.exists() else None


@pytest.fixture
def nft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Nft:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return Nft(folder)


def prepared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, zone: str = "UTC"
) -> tuple[Layout, int]:
    """What a boot comes to on a machine with a data disk and a cache of the settings."""
    layout = Layout(root=tmp_path / "root")
    layout.configuration.mkdir(parents=True)
    layout.settings.write_bytes(SETTINGS.to_json())
    (layout.root / "usr/share/zoneinfo").mkdir(parents=True)
    if zone:
        (layout.root / "usr/share/zoneinfo" / zone).touch()
    monkeypatch.setattr("appliance.machine.prepare.mount_data_disk", lambda layout: None)
    monkeypatch.setattr(
        "appliance.machine.property_source.property_source", lambda: _NoProperties()
    )
    monkeypatch.setattr("os.path.ismount", lambda path: path == layout.home)
    return layout, machine_main.run_prepare(layout)


class _NoProperties(PropertySource):
    name = "none"

    def read(self) -> bytes | None:
        return None

    def blank(self) -> None:
        raise AssertionError("there is nothing to blank")


def test_rules_of_the_settings_are_loaded(nft: Nft) -> None:
    """The ordinary case leaves nothing to say."""
    outcome = load_firewall(rules(SETTINGS))
    assert (outcome.state, outcome.problem) == (FirewallState.SETTINGS, None)
    assert nft.loaded == rules(SETTINGS) and "192.0.2.0/24" in (nft.loaded or "")


def test_rules_that_are_refused_leave_a_firewall_that_lets_nobody_in(
    nft: Nft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Backups, which go out, go on; who sits at the console reads why and may correct it."""
    nft.refuse("saddr { 192.0.2.0/24 }")
    layout, exit_code = prepared(tmp_path, monkeypatch)
    assert exit_code == 0 and nft.loaded == closed_rules()
    assert "dport { 22" not in closed_rules() and "policy drop" in closed_rules()
    status = read_status(layout.status)
    assert status is not None and status.firewall is FirewallState.CLOSED
    page = console_page(
        ConsoleFacts(
            version="1", hostname="h", addresses=(), fingerprint="", setup_token="", status=status
        )
    )
    assert "[machine.firewall-closed]" in page and "syntax error" in page
    assert "set the networks again" in page and "Press Enter" in page


def test_without_any_firewall_the_daemon_does_not_start(
    nft: Nft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The unit that `holdfast.service` requires fails, so that nothing of ours listens."""
    nft.refuse("holdfast")
    layout, exit_code = prepared(tmp_path, monkeypatch)
    assert exit_code == 1 and nft.loaded is None
    status = read_status(layout.status)
    assert status is not None and status.firewall is FirewallState.NONE
    assert "[machine.no-firewall]" in status.problems[0]
    units = Path(__file__).parents[2] / "ova/files/usr/lib/systemd/system"
    assert "Requires=holdfast-prepare.service" in (units / "holdfast.service").read_text()


def test_settings_that_fail_later_do_not_keep_the_firewall_away(
    nft: Nft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is loaded before files, time zone, keys and disk, any of which may fail."""
    layout, exit_code = prepared(tmp_path, monkeypatch, zone="")
    assert exit_code == 0 and nft.loaded == rules(SETTINGS)
    status = read_status(layout.status)
    assert status is not None and status.firewall is FirewallState.SETTINGS
    assert "time_zone" in status.problems[0]


def test_a_system_disk_that_cannot_be_written_is_told_and_the_data_disk_is_mounted(
    nft: Nft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Full, or read-only after an error: every later step is still taken, and the console says."""

    def refuse(layout: Layout, settings: MachineSettings) -> None:
        raise OSError(errno.EROFS, "Read-only file system", "/etc/localtime")

    monkeypatch.setattr("appliance.machine.prepare.apply_settings", refuse)
    layout, exit_code = prepared(tmp_path, monkeypatch)
    assert exit_code == 0 and nft.loaded == rules(SETTINGS)
    status = read_status(layout.status)
    assert status is not None
    assert [problem for problem in status.problems if "[storage.failed]" in problem] == [
        "[storage.failed] [Errno 30] Read-only file system: '/etc/localtime'"
    ]


def test_damaged_settings_leave_address_key_and_firewall_as_they_are(
    nft: Nft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slip in machine.json must not lock its administrator out, nor let everybody in."""
    layout, _ = prepared(tmp_path, monkeypatch)
    network = layout.root / "etc/systemd/network/10-holdfast.network"
    network.write_text("Address=192.0.2.10/24")
    layout.settings.write_text('{"hostname": "a b"}')
    nft.forget()
    assert machine_main.run_prepare(layout) == 0
    assert nft.loaded == rules(SETTINGS) and "0.0.0.0/0" not in (nft.loaded or "")
    assert network.read_text() == "Address=192.0.2.10/24"
    status = read_status(layout.status)
    assert status is not None and "hostname" in status.problems[0]
    layout.firewall.unlink()
    machine_main.run_prepare(layout)
    assert nft.loaded == closed_rules()


def test_the_security_check_says_what_the_machine_complained_of(tmp_path: Path) -> None:
    """With a code and what to do; where there is no appliance, it says nothing of it."""
    layout = Layout(root=tmp_path / "root")
    with api_serving(tmp_path / "home") as (services, _):
        check = SecurityCheck(services.catalog, services.repository, services.home, machine=layout)

        def found() -> dict[str, SecurityFinding]:
            return {each.code: each for each in check.findings()}

        assert "security.firewall" not in found()
        Status(firewall=FirewallState.SETTINGS).write(layout.status)
        assert found()["security.firewall"].passed and found()["security.machine"].passed
        closed = Status(firewall=FirewallState.CLOSED, problems=("[machine.firewall-closed] x",))
        closed.write(layout.status)
        firewall, machine = found()["security.firewall"], found()["security.machine"]
    assert not firewall.passed and "lets nobody in" in firewall.text
    assert "holdfast-machine set-up" in firewall.next_step
    assert not machine.passed and "[machine.firewall-closed]" in machine.text
