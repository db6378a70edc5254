"""`holdfast repo delete`: the whole repository, only when it is meant and nobody uses it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from appliance.base.errors import ApplianceError
from appliance.base.secret import Secret
from appliance.catalog.accounts import Role
from appliance.catalog.approvals import ApprovalState, Guard
from appliance.catalog.catalog import Catalog
from appliance.cli.main import main
from appliance.repository import removal
from appliance.repository.locks import SessionKind
from appliance.repository.repository import Repository
from appliance.service.console_deletion import console_deletion
from appliance.service.daemon_lock import daemon_lock
from tests.support.job_world import MovedClock
from tests.support.small_backups import back_up_bytes

PASSWORD = "correct horse battery"
Command = Callable[..., Any]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state folder whose repository holds one point."""
    made = tmp_path / "home"
    made.mkdir(mode=0o700)
    Repository.create(made / "repository")
    with Repository.open(made / "repository") as repository:
        back_up_bytes(repository, b"x" * 50_000, "web")
    monkeypatch.setenv("HOLDFAST_HOME", str(made))
    return made


@pytest.fixture
def delete(home: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    def run(*words: str, code: int = 0) -> Any:
        capsys.readouterr()
        assert main(["repo", "delete", *words, "--json"]) == code
        shown = capsys.readouterr()
        return shown.err if code == 2 else json.loads(shown.out)

    return run


def identity(home: Path) -> str:
    return removal.repository_facts(home / "repository").repository_id


def test_it_is_deleted_when_its_id_is_given(home: Path, delete: Command) -> None:
    """Not without, and not with another; afterwards there is room for a new one."""
    short = identity(home)[:8]
    assert short in delete(code=2)
    assert "nothing was deleted" in delete("--confirm", "00000000", code=2)
    assert delete("--confirm", short)["point_count"] == 1
    assert not (home / "repository").exists()
    assert main(["repo", "init"]) == 0


def test_what_is_not_of_the_repository_stays(home: Path, delete: Command) -> None:
    """Also where something of ours is a link to elsewhere."""
    elsewhere = home.parent / "elsewhere"
    shutil.move(home / "repository" / "packs", elsewhere)
    (home / "repository" / "packs").symlink_to(elsewhere)
    (home / "repository" / "notes.txt").write_text("mine")
    assert delete("--confirm", identity(home))["left"] == ["notes.txt"]
    assert [path.name for path in (home / "repository").iterdir()] == ["notes.txt"]
    assert any(elsewhere.iterdir())


@pytest.mark.parametrize("kind", [SessionKind.BACKUP, SessionKind.READER, SessionKind.GC])
def test_it_is_refused_while_somebody_uses_it(
    home: Path, delete: Command, kind: SessionKind
) -> None:
    """A backup, a restore, garbage collection; the error says who."""
    with Repository.open(home / "repository") as repository:
        with repository.locks.register(kind, repository.new_run_id()):
            error = delete("--confirm", identity(home), code=1)["error"]
        assert error["code"] == "repository.locked" and str(kind) in error["message"]
        assert len(repository.points.ids()) == 1


def test_it_is_refused_while_a_daemon_serves_the_state_folder(home: Path, delete: Command) -> None:
    """It has the repository open, whatever it does at the moment."""
    with daemon_lock(home):
        error = delete("--confirm", identity(home), code=1)["error"]
    assert error["code"] == "daemon.running"
    assert (home / "repository" / "config.json").exists()


def test_a_deletion_that_was_cut_off_leaves_nothing_that_opens_and_goes_on(
    home: Path, delete: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it ends: the keys go first, the configuration last."""
    confirm = ("--confirm", identity(home))
    whole, steps = home / "repository", 0
    kept = home.parent / "kept"
    shutil.copytree(whole, kept)
    remove = removal._remove
    while True:
        left = steps

        def limited(folder: Path) -> None:
            nonlocal left
            remove(folder)
            left -= 1
            if left == 0:
                raise OSError(5, "cut off", str(folder))

        monkeypatch.setattr(removal, "_remove", limited)
        steps += 1
        left = steps
        assert main(["repo", "delete", *confirm]) in (0, 1)
        monkeypatch.setattr(removal, "_remove", remove)
        if not whole.exists():
            break
        with pytest.raises(ApplianceError):
            Repository.open(whole)
        if (whole / "config.json").exists():
            assert delete(*confirm)["deleted"] == confirm[1]
            assert not whole.exists()
        shutil.rmtree(whole, ignore_errors=True)
        shutil.copytree(kept, whole)
    assert steps > 8


def test_where_deletion_is_guarded_a_second_administrator_approves_first(
    home: Path, delete: Command, tmp_path: Path
) -> None:
    """The approval deletes nothing; the command does, once, and only within a week."""
    (tmp_path / "password").write_text(PASSWORD + "\n")
    who = ("--account", "anna", "--password-file", str(tmp_path / "password"))
    confirm = ("--confirm", identity(home))
    with Catalog.open(home) as catalog:
        for name in ("anna", "bert"):
            catalog.accounts.create(name, Secret.of_text(PASSWORD), Role.ADMINISTRATOR)
        catalog.approvals.set_guard(Guard.SECOND_ADMINISTRATOR)
    assert "--account" in delete(*confirm, code=2)
    number = delete(*confirm, *who)["approval"]["id"]
    assert delete(*confirm, *who)["approval"]["id"] == number
    assert identity(home)
    with (
        Catalog.open(home, clock=MovedClock(datetime.now(UTC) - timedelta(days=8))) as catalog,
        Repository.open(home / "repository") as repository,
    ):
        deletion = console_deletion(catalog, repository, home)
        assert deletion.approve(number, by="bert").state is ApprovalState.APPROVED
        deletion.resume()
        assert catalog.approvals.get(number).state is ApprovalState.APPROVED
        assert catalog.approvals.guard() is Guard.SECOND_ADMINISTRATOR
    late = delete(*confirm, *who)["approval"]["id"]
    assert late != number and identity(home)
    with Catalog.open(home) as catalog, Repository.open(home / "repository") as repository:
        console_deletion(catalog, repository, home).approve(late, by="bert")
    assert delete(*confirm, *who)["deleted"] == confirm[1]
    assert not (home / "repository").exists()
    with Catalog.open(home) as catalog:
        assert catalog.approvals.get(late).state is ApprovalState.DONE
        actions = [(entry.actor, entry.action) for entry in catalog.audit.page(limit=10)]
    assert ("anna", "delete repository") in actions
