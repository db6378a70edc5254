"""`holdfast-machine`: what systemd and the console start, and what a person may call by hand."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.cli import machine_main
from appliance.machine import console
from appliance.machine.console_page import ConsoleFacts
from appliance.machine.errors import PropertyError
from appliance.machine.firewall import FirewallState
from appliance.machine.layout import Layout, Status
from appliance.machine.settings import Deployment, MachineSettings
from appliance.repository.repository import Repository

IMAGE = Path(__file__).parents[2] / "ova/files"
OPEN = ConsoleFacts(
    version="1.0",
    hostname="backup",
    addresses=[],
    fingerprint="",
    setup_token="first-time",
    status=Status(firewall=FirewallState.SETTINGS),
)


def test_what_the_documents_tell_people_to_type_is_on_the_path_of_the_image() -> None:
    """`sudo` looks into /usr/local/bin, and nowhere below /opt."""
    text = (Path(__file__).parents[2] / "docs/appliance.md").read_text()
    for program in set(re.findall(r"`sudo (holdfast[\w-]*) ", text)):
        path = IMAGE / "usr/local/bin" / program
        assert os.access(path, os.X_OK), program
        assert f"/opt/holdfast/current/bin/{program}" in path.read_text()


def test_an_update_is_not_judged_on_a_machine_without_its_data_disk() -> None:
    """No version would start, and the copy of the catalog would be spent on the system disk."""
    unit = (IMAGE / "usr/lib/systemd/system/holdfast-settle.service").read_text()
    assert "Requires=holdfast-prepare.service" in unit.splitlines()


def test_a_repository_that_a_power_cut_left_half_made_is_made_at_the_next_start(
    tmp_path: Path,
) -> None:
    """Else the appliance would never start; and one that is whole stays as it is."""
    layout = Layout(root=tmp_path)
    folder = layout.home / "repository"
    (folder / "keys").mkdir(parents=True)
    assert machine_main.run_repository(layout) == 0
    with Repository.open(folder) as made:
        identity = made.config.repository_id
    assert machine_main.run_repository(layout) == 0
    with Repository.open(folder) as made:
        assert made.config.repository_id == identity


def test_nothing_is_made_where_an_adopted_repository_is_not_mounted(tmp_path: Path) -> None:
    """The link leads to an empty folder then."""
    layout = Layout(root=tmp_path)
    layout.home.mkdir(parents=True)
    (tmp_path / "mnt").mkdir()
    (layout.home / "repository").symlink_to(tmp_path / "mnt")
    assert machine_main.run_repository(layout) == 0
    assert list((tmp_path / "mnt").iterdir()) == []


def test_settings_that_cannot_be_carried_out_are_told_at_the_console(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It goes on, and the next round of questions counts: nobody there sees a log."""
    lines = io.StringIO("\n" + "\n" * len(console._QUESTIONS) + "\n" + "\n" * 16)
    monkeypatch.setattr("sys.stdin", lines)
    monkeypatch.setattr("select.select", lambda read, *_: (read, [], []))
    answers: Iterator[Exception | None] = iter([PropertyError("time_zone 'Mars'"), None])
    accepted: list[Deployment] = []

    def accept(deployment: Deployment) -> None:
        if (refusal := next(answers)) is not None:
            raise refusal
        accepted.append(deployment)

    with pytest.raises(EOFError):
        console.run_console(lambda: OPEN, MachineSettings, accept)
    assert "time_zone 'Mars'" in capsys.readouterr().out
    assert len(accepted) == 1


def test_damaged_settings_can_be_set_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As `machine.property` says: the questions begin with the defaults."""
    layout = Layout(root=tmp_path)
    layout.configuration.mkdir(parents=True)
    layout.settings.write_text('{"hostname": "a b"}')
    accepted: list[Deployment] = []
    monkeypatch.setattr(machine_main, "_accept", lambda layout, new: accepted.append(new))
    monkeypatch.setattr("builtins.input", lambda question: "")
    assert machine_main.run_set_up(layout) == 0
    assert accepted[0].settings == MachineSettings()
    assert "hostname" in capsys.readouterr().err


def test_set_up_that_is_broken_off_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C, or the end of input: no traceback, and nothing was applied."""

    def broken_off(question: str) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", broken_off)
    assert machine_main.main(["set-up"]) == 1
    assert "nothing was set up" in capsys.readouterr().err
