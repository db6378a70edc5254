"""A new appliance in the place of an old one: configuration, repository, sign of life."""

from __future__ import annotations

import shutil
import socket
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from appliance.api.setup_token_file import SetupTokenFile
from appliance.base.secret import Secret
from appliance.base.service_notify import notify, watchdog_interval_s
from appliance.catalog.accounts import Role
from appliance.catalog.catalog import Catalog
from appliance.catalog.errors import CatalogVersionError
from appliance.catalog.hosts import HostKind, HostRecord
from appliance.cli.heartbeat import Heartbeat
from appliance.cli.main import main
from appliance.exports.loop_thread import LoopThread
from appliance.repository.key_slots import ScryptCost, WrongPassphraseError
from appliance.repository.repository import Repository
from appliance.service import config_bundle
from appliance.service.adoption import AdoptRefusedError, adopt
from appliance.service.config_bundle import (
    ConfigBundleError,
    ConfigPresentError,
    export_config,
    import_config,
)
from appliance.service.daemon_lock import DaemonRunningError, daemon_lock
from tests.support.small_backups import SMALL_PACKS, back_up_bytes, random_disk

PASSPHRASE = Secret.of_text("of the bundle")
HOST = HostRecord(
    name="vc1",
    kind=HostKind.VSPHERE,
    address="vcenter.example",
    port=443,
    user="backup",
    fingerprint=":".join(["AB"] * 32),
    server_id="one",
    added_at=datetime(2026, 1, 2, tzinfo=UTC),
)


@pytest.fixture(autouse=True)
def quick_passphrases(monkeypatch: pytest.MonkeyPatch) -> None:
    """A real one takes half a second, which is not what is tested here."""
    monkeypatch.setattr(config_bundle, "_COST", ScryptCost(n=1 << 10))


def old_home(folder: Path) -> Path:
    """An appliance with a host, an account, a certificate and a TLS key."""
    home = folder / "old"
    home.mkdir(mode=0o700)
    with Catalog.open(home) as catalog:
        catalog.hosts.add(HOST, Secret.of_text("hypervisor password"))
        catalog.accounts.create("ada", Secret.of_text("a long password"), Role.ADMINISTRATOR)
    for name in ("tls/key.pem", "certificates/00000001.json", "signing.key"):
        (home / name).parent.mkdir(exist_ok=True)
        (home / name).write_text(f"content of {name}")
    (home / "repository").mkdir()
    return home


def test_a_configuration_moves_with_passwords_accounts_and_keys(tmp_path: Path) -> None:
    """Beside a running daemon on the old side; the repository is not part of it."""
    home, new, bundle = old_home(tmp_path), tmp_path / "new", tmp_path / "bundle"
    with daemon_lock(home):
        export_config(home, bundle, PASSPHRASE)
    done = import_config(new, bundle, PASSPHRASE)
    assert (done.hosts, done.jobs, done.accounts, done.kept) == (1, 0, 1, None)
    with Catalog.open(new) as catalog, Catalog.open(home) as before:
        assert catalog.hosts.password(catalog.hosts.get("vc1")).reveal() == b"hypervisor password"
        catalog.accounts.verify("ada", Secret.of_text("a long password"))
        assert catalog.appliance_id == before.appliance_id
    for name in ("tls/key.pem", "certificates/00000001.json", "signing.key"):
        assert (new / name).read_text() == f"content of {name}"
    assert not (new / "repository").exists()
    assert (new / "secrets.key").stat().st_mode & 0o077 == 0


def test_a_bundle_shows_nothing_and_opens_to_nothing_but_its_passphrase(tmp_path: Path) -> None:
    """Whoever keeps it needs no trust, and whoever changes it gains nothing."""
    home, bundle = old_home(tmp_path), tmp_path / "bundle"
    export_config(home, bundle, PASSPHRASE)
    raw = bundle.read_bytes()
    assert b"vcenter" not in raw and b"secrets.key" not in raw
    with pytest.raises(ConfigBundleError):
        import_config(tmp_path / "new", bundle, Secret.of_text("another"))
    for bad in (raw[:-1], raw[:60] + b"x" + raw[61:], raw[:20], b"", b"x" * 100):
        bundle.write_bytes(bad)
        with pytest.raises(ConfigBundleError):
            import_config(tmp_path / "new", bundle, PASSPHRASE)
    assert not (tmp_path / "new" / "catalog.sqlite").exists()


def test_an_import_replaces_a_configuration_only_when_told_and_keeps_it(tmp_path: Path) -> None:
    """Nobody loses an appliance by a mistyped name."""
    home, bundle = old_home(tmp_path), tmp_path / "bundle"
    export_config(home, bundle, PASSPHRASE)
    with pytest.raises(ConfigPresentError):
        import_config(home, bundle, PASSPHRASE)
    kept = [import_config(home, bundle, PASSPHRASE, replace=True).kept for _ in range(2)]
    assert len(set(kept)) == 2
    for folder in kept:
        assert folder is not None
        with Catalog.open(folder) as catalog:
            assert catalog.hosts.get("vc1") == HOST


def test_an_import_waits_for_no_daemon_and_takes_nothing_newer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are refused, and the appliance is as before."""
    home, new, bundle = old_home(tmp_path), tmp_path / "new", tmp_path / "bundle"
    export_config(home, bundle, PASSPHRASE)
    new.mkdir(mode=0o700)
    with daemon_lock(new), pytest.raises(DaemonRunningError):
        import_config(new, bundle, PASSPHRASE)
    with monkeypatch.context() as older:
        keywords = Catalog.open.__func__.__globals__["Database"].open.__func__.__kwdefaults__
        older.setitem(keywords, "migrations", keywords["migrations"][:1])
        with pytest.raises(CatalogVersionError):
            import_config(new, bundle, PASSPHRASE)
    assert not (new / "catalog.sqlite").exists()


def repository_with_points(path: Path, passphrase: Secret | None = None) -> None:
    Repository.create(path, passphrase=passphrase)
    with Repository.open(path, passphrase=passphrase, options=SMALL_PACKS) as repository:
        for vm in ("web", "db"):
            back_up_bytes(repository, random_disk(1, 50), vm)


def test_a_new_appliance_adopts_a_repository_without_its_index(tmp_path: Path) -> None:
    """As when only the storage survived; the empty repository from before is set aside."""
    source, home = tmp_path / "storage", tmp_path / "home"
    repository_with_points(source)
    shutil.rmtree(source / "lmdb")
    home.mkdir(mode=0o700)
    Repository.create(home / "repository")
    done = adopt(home, source)
    assert (done.repository.points, done.repository.vms) == (2, ("db", "web"))
    assert done.set_aside == home / "repository-before-adopt-1"
    assert main(["verify", "latest:web", "--home", str(home), "--quiet"]) == 0
    assert adopt(home, source).set_aside is None  # again changes nothing


def test_adopting_is_refused_where_points_would_be_lost_or_the_passphrase_is_wrong(
    tmp_path: Path,
) -> None:
    """Nothing is moved then."""
    source, home = tmp_path / "storage", tmp_path / "home"
    secret = Secret.of_text("right")
    repository_with_points(source, secret)
    home.mkdir(mode=0o700)
    with pytest.raises(WrongPassphraseError):
        adopt(home, source, passphrase=Secret.of_text("wrong"))
    assert not (home / "repository").exists()
    repository_with_points(home / "repository")
    with pytest.raises(AdoptRefusedError):
        adopt(home, source, passphrase=secret)
    with daemon_lock(home), pytest.raises(DaemonRunningError):
        adopt(home, source, passphrase=secret)


def test_systemd_hears_from_a_service_and_silence_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ready and alive; without a manager nothing happens."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    notify("READY=1")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        notify("READY=1")
        assert manager.recv(64) == b"READY=1"


def test_the_daemon_sends_a_beat_only_while_its_parts_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A catalog that fails, or an API that hangs, is silence, and systemd restarts it."""
    assert watchdog_interval_s() is None
    monkeypatch.setenv("WATCHDOG_USEC", "2000000")
    assert watchdog_interval_s() == 1.0
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert watchdog_interval_s() is None
    monkeypatch.delenv("WATCHDOG_PID")
    monkeypatch.setenv("WATCHDOG_USEC", "2")
    loop = LoopThread("test")
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind(str(tmp_path / "notify"))
            manager.setblocking(False)
            monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))

            def failing() -> None:
                raise OSError("the catalog")

            broken = Heartbeat(loop, failing)
            time.sleep(0.001)
            with pytest.raises(OSError):
                broken.beat()
            with pytest.raises(BlockingIOError):
                manager.recv(64)
            good = Heartbeat(loop, lambda: None)
            time.sleep(0.001)
            good.beat()
            assert manager.recv(64) == b"WATCHDOG=1"
    finally:
        loop.stop()


def test_the_set_up_token_lies_in_a_private_file_until_it_was_used(tmp_path: Path) -> None:
    """For the console and nobody else."""
    file = SetupTokenFile(tmp_path / "token")
    file.write("first-time")
    assert (tmp_path / "token").read_text() == "first-time\n"
    assert (tmp_path / "token").stat().st_mode & 0o077 == 0
    file.remove()
    file.remove()
    assert not (tmp_path / "token").exists()
