"""Updates: what is accepted, and that one of the two versions always runs whatever happens."""

from __future__ import annotations

import errno
import io
import platform
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from appliance.base.errors import StorageError, UsageError
from appliance.machine import update as update_module
from appliance.machine.environments import CURRENT, PREVIOUS, Environments, version_key
from appliance.machine.errors import MachineCommandError
from appliance.machine.layout import Layout
from appliance.machine.update import (
    UpdateRefusedError,
    UpdateRolledBackError,
    settle,
    update,
)
from appliance.machine.update_bundle import (
    UpdateBundleError,
    UpdateSignatureError,
    read_manifest,
    unpack,
    write_bundle,
)

KEY = Ed25519PrivateKey.generate()
PYTHON = ".".join(platform.python_version_tuple()[:2])


class Machine:
    """An appliance at version 1.0 with a catalog, and a daemon that works in versions named."""

    def __init__(self, root: Path) -> None:
        self.layout = Layout(root=root)
        self.environments = Environments(self.layout.environments)
        self.works_in = {"1.0", "1.1"}
        self.starts: list[str] = []
        self.on_start: Callable[[str], None] = lambda version: None
        for folder in (self.layout.environments, self.layout.home, self.layout.configuration):
            folder.mkdir(parents=True)
        self.layout.update_key.write_bytes(
            KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        )
        self.prepared("1.0")
        self.environments.point(CURRENT, "1.0")
        (self.layout.home / "catalog.sqlite").write_text("catalog of 1.0")

    def prepared(self, version: str) -> None:
        """An environment that is installed already."""
        folder = self.layout.environments / version
        folder.mkdir()
        for name in ("pyvenv.cfg", ".complete"):
            (folder / name).touch()

    @property
    def current(self) -> str:
        return self.environments.version_of(CURRENT) or ""

    @property
    def catalog(self) -> str:
        return (self.layout.home / "catalog.sqlite").read_text()

    def stop(self) -> None:
        self.starts.append("stop")

    def start(self) -> None:
        """A version migrates the catalog when it starts."""
        self.starts.append(self.current)
        self.on_start(self.current)
        if self.current == "1.1":
            (self.layout.home / "catalog.sqlite").write_text("catalog of 1.1")
            (self.layout.home / "catalog.sqlite-wal").write_text("log of 1.1")

    def healthy(self, version: str) -> bool:
        return version == self.current and version in self.works_in


def wheel(folder: Path, name: str = "holdfast-1.1-py3-none-any.whl") -> Path:
    path = folder / name
    path.write_bytes(f"content of {name}".encode() * 100)
    return path


def bundle(folder: Path, *, version: str = "1.1", python: str = PYTHON) -> Path:
    target = folder / "bundle"
    wheels = [wheel(folder), wheel(folder, "other-2.0-py3-none-any.whl")]
    write_bundle(target, wheels, version=version, python=python, key=KEY)
    return target


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    made = Machine(tmp_path / "root")
    made.prepared("1.1")
    return made


def test_a_bundle_gives_back_what_went_in_and_is_the_same_each_time(tmp_path: Path) -> None:
    """Two builds can be compared."""
    path = bundle(tmp_path)
    before = path.read_bytes()
    assert bundle(tmp_path).read_bytes() == before
    out = tmp_path / "out"
    out.mkdir()
    with path.open("rb") as file:
        manifest = read_manifest(file, KEY.public_key())
        unpack(file, manifest, out)
    assert manifest.version == "1.1"
    for name in ("holdfast-1.1-py3-none-any.whl", "other-2.0-py3-none-any.whl"):
        assert (out / name).read_bytes() == (tmp_path / name).read_bytes()


def test_whatever_byte_is_changed_the_bundle_is_refused(tmp_path: Path) -> None:
    """Head, manifest, signature or content; and a cut or a longer one too."""
    good = bundle(tmp_path).read_bytes()
    changed = [good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :] for at in range(0, len(good), 97)]
    for bad in (*changed, good[:-1], good + b"x", good[:5], b""):
        with pytest.raises((UpdateBundleError, UpdateSignatureError)):
            file = io.BytesIO(bad)
            manifest = read_manifest(file, KEY.public_key())
            unpack(file, manifest, tmp_path)


def test_a_bundle_of_another_key_is_refused(machine: Machine, tmp_path: Path) -> None:
    """And nothing has happened."""
    wheels = [wheel(tmp_path)]
    path = tmp_path / "bundle"
    other = Ed25519PrivateKey.generate()
    write_bundle(path, wheels, version="1.1", python=PYTHON, key=other)
    with pytest.raises(UpdateSignatureError):
        update(path, machine.layout, machine)
    assert machine.starts == [] and machine.current == "1.0"


@pytest.mark.parametrize("options", [{"version": "1.0"}, {"version": "0.9"}, {"python": "3.99"}])
def test_what_does_not_fit_is_refused_before_anything_stops(
    machine: Machine, tmp_path: Path, options: dict[str, str]
) -> None:
    """Not newer, or for another Python."""
    with pytest.raises(UpdateRefusedError):
        update(bundle(tmp_path, **options), machine.layout, machine)
    assert machine.starts == []


def test_an_update_makes_the_new_version_current(machine: Machine, tmp_path: Path) -> None:
    """The one before stays for the next time, older ones go."""
    machine.prepared("0.9")
    result = update(bundle(tmp_path), machine.layout, machine)
    assert (result.before, result.now) == ("1.0", "1.1")
    assert machine.starts == ["stop", "1.1"] and machine.catalog == "catalog of 1.1"
    names = {path.name for path in machine.layout.environments.iterdir()}
    assert names == {"1.0", "1.1", "current", "previous", ".lock"}


def test_a_version_that_does_not_become_healthy_is_taken_back_with_its_catalog(
    machine: Machine, tmp_path: Path
) -> None:
    """What the new one migrated, the old one would refuse."""
    machine.works_in = {"1.0"}
    with pytest.raises(UpdateRolledBackError):
        update(bundle(tmp_path), machine.layout, machine)
    assert machine.current == "1.0" and machine.catalog == "catalog of 1.0"
    assert not (machine.layout.home / "catalog.sqlite-wal").exists()
    assert machine.starts == ["stop", "1.1", "stop", "1.0"]
    assert not (machine.layout.environments / "1.1").exists()


def test_a_version_that_does_not_start_is_taken_back(machine: Machine, tmp_path: Path) -> None:
    """The same, told by systemd."""

    def fail(version: str) -> None:
        if version == "1.1":
            raise MachineCommandError("systemctl exited with 1")

    machine.on_start = fail
    with pytest.raises(UpdateRolledBackError, match="systemctl"):
        update(bundle(tmp_path), machine.layout, machine)
    assert machine.current == "1.0" and machine.starts[-1] == "1.0"


def test_a_catalog_that_cannot_be_copied_leaves_the_old_version_and_no_debris(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a copy would keep a full system disk full."""

    def full(source: Path, target: Path) -> None:
        target.write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device", str(target))

    monkeypatch.setattr(update_module, "_copy_file", full)
    with pytest.raises(StorageError, match="No space left"):
        update(bundle(tmp_path), machine.layout, machine)
    assert machine.current == "1.0" and machine.starts[-1] == "1.0"
    assert not list(machine.layout.environments.glob("catalog-*"))


class PowerCutError(BaseException):
    pass


def test_a_power_cut_anywhere_leaves_a_version_that_the_next_boot_settles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every durable step of the update is the last one once, with a good and with a bad version."""
    for works in (True, False):
        cuts = 0
        while True:
            machine = Machine(tmp_path / f"{works}-{cuts}")
            machine.prepared("1.1")
            machine.works_in = {"1.0", "1.1"} if works else {"1.0"}
            with monkeypatch.context() as patch:
                done = cut_after(cuts, patch, machine, bundle(tmp_path))
            assert machine.current in ("1.0", "1.1")
            if (machine.layout.environments / "update.json").exists():
                assert machine.environments.version_of(PREVIOUS) == "1.0"  # its program settles
            try:
                settle(machine.layout, machine)
            except UpdateRolledBackError:
                assert not works
            version = machine.current
            assert version in machine.works_in
            assert not (machine.layout.environments / "update.json").exists()
            if version == "1.0":
                assert machine.catalog == "catalog of 1.0"
            if done:
                assert version == ("1.1" if works else "1.0")
                break
            cuts += 1
        assert cuts >= 5


def cut_after(steps: int, patch: pytest.MonkeyPatch, machine: Machine, path: Path) -> bool:
    """Whether the update came to its end before `steps` renames, removals and starts were done."""
    left = steps

    def counted(function: Callable[..., object]) -> Callable[..., object]:
        def run(*args: object, **kwargs: object) -> object:
            nonlocal left
            if left == 0:
                raise PowerCutError
            left -= 1
            return function(*args, **kwargs)

        return run

    patch.setattr(Path, "replace", counted(Path.replace))
    patch.setattr(Path, "unlink", counted(Path.unlink))
    patch.setattr(update_module, "replace_file", counted(update_module.replace_file))
    patch.setattr(machine, "start", counted(machine.start))
    try:
        update(path, machine.layout, machine)
    except PowerCutError:
        return False
    except UpdateRolledBackError:
        return True
    return True


def test_where_there_is_no_appliance_there_is_no_update(tmp_path: Path) -> None:
    """A Holdfast that was installed by other means is updated by those."""
    with pytest.raises(UsageError):
        update(bundle(tmp_path), Layout(root=tmp_path / "empty"), Machine(tmp_path / "other"))


def test_a_bundle_that_is_not_there_is_named(machine: Machine, tmp_path: Path) -> None:
    """An error of the system, with the file."""
    with pytest.raises(StorageError, match="missing"):
        update(tmp_path / "missing", machine.layout, machine)


def test_versions_are_ordered_as_they_were_released() -> None:
    """Numbers by value, candidates before the release."""
    ordered = ["0.9", "0.10", "1.0.dev1", "1.0a1", "1.0rc1", "1.0", "1.0.1", "1.1"]
    assert sorted(reversed(ordered), key=version_key) == ordered
