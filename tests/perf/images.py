"""The image set of the bench: three disks of real Debian systems, built once and cached.

`web` and `web-later` are one system at two points in time (packages upgraded, added and removed,
logs and pages changed in place); `app` is another system. 16 GiB virtual, 2.5 GiB not zero.
Built by mmdebstrap from the host's own package sources; the cache key is the recipe (packages,
sizes, release, REVISION of the stages), and a set appears in the cache by one rename, or never.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path

from appliance.base.units import GIB
from tests.perf import apt_sources, image_stage, sparse

ROOT = Path(__file__).parents[2]
BUILD_TIMEOUT_S = 1200


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    name: str
    size_bytes: int
    packages: tuple[str, ...]
    added_later: tuple[str, ...] = ()
    removed_later: tuple[str, ...] = ()


_COMMON = (
    "linux-image-cloud-amd64",
    "systemd-sysv",
    "openssh-server",
    "python3",
    "ca-certificates",
)
SYSTEMS = (
    System(
        name="web",
        size_bytes=6 * GIB,
        packages=(*_COMMON, "nginx", "postgresql", "git", "perl", "vim", "curl"),
        added_later=("redis-server", "php-cli", "rsync", "tmux"),
        removed_later=("vim", "vim-runtime"),
    ),
    System(
        name="app",
        size_bytes=4 * GIB,
        packages=(*_COMMON, "default-jre-headless", "apache2", "ruby", "redis-server"),
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSet:
    folder: Path

    @property
    def disks(self) -> list[Path]:
        return [self.folder / name for name in ("web.raw", "web-later.raw", "app.raw")]


def cache_folder() -> Path:
    configured = os.environ.get("HOLDFAST_CACHE")
    return Path(configured) if configured else Path.home() / ".cache" / "holdfast"


def recipe_digest() -> str:
    """Names a set: another recipe, release or revision is another set."""
    parts = [repr(SYSTEMS), apt_sources.host_codename(), str(image_stage.REVISION)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def image_set() -> ImageSet:
    """Return the cached set, building it first where it is missing (minutes)."""
    home = cache_folder() / "bench-images"
    final = home / recipe_digest()
    if not final.is_dir():
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".build-", dir=home) as work:
            done = Path(work, "set")
            done.mkdir()
            for system in SYSTEMS:
                build_system(system, Path(work, system.name), done)
            with contextlib.suppress(FileExistsError):  # another run was quicker
                done.rename(final)
    return ImageSet(folder=final)


def build_system(system: System, work: Path, done: Path) -> None:
    """Leave `NAME.raw`, and `NAME-later.raw` where the system has a later state, in `done`."""
    work.mkdir()
    identity = uuid.uuid5(uuid.NAMESPACE_DNS, f"{system.name}.bench.holdfast")
    (work / "disk").write_text(f"{system.name} {system.size_bytes} {identity}")
    sources = apt_sources.host_sources()
    codename = apt_sources.host_codename()
    # The first state has the release as it was; updates and fixes are what the later state gets.
    start = [s for s in sources if s.suite == codename] if system.added_later else sources
    (work / "start.sources").write_text(apt_sources.as_deb822(start))
    (work / "later.sources").write_text(apt_sources.as_deb822(sources))
    command = ["mmdebstrap", "--quiet", "--variant=minbase", "--format=null"]
    command += [f"--include={','.join(system.packages)}", "--dpkgopt=force-unsafe-io"]
    command += [f"--customize-hook={hook}" for hook in _hooks(system, work)]
    _run_build([*command, codename, "-", str(work / "start.sources")], work)
    for disk in work.glob("*.raw"):
        # A copy with every zero block as a hole: what mke2fs reserved and never wrote would count
        # as data or as a hole by what the page cache holds (seen: 4 % of the set).
        sparse.copy(disk, done / disk.name)


def _hooks(system: System, work: Path) -> list[str]:
    """Shell lines for mmdebstrap, which passes the tree as $1; all other words are ours, quoted.

    apt runs INSIDE the tree. Run from outside with mmdebstrap's APT_CONFIG, `apt-get install` calls
    dpkg without --root and the packages land on the machine that builds (seen with 1.3.5).
    """
    stage = (
        f"cd {shlex.quote(str(ROOT))} && {shlex.quote(sys.executable)} -m tests.perf.image_stage"
    )
    folder = shlex.quote(str(work))
    apt = 'DEBIAN_FRONTEND=noninteractive chroot "$1" apt-get --quiet --quiet --yes'
    apt += " --no-install-recommends"
    # Lists and archives of apt are the same on every system and would flatter deduplication.
    tidy = (
        f'{apt} clean && rm -rf "$1"/var/lib/apt/lists && mkdir -p "$1"/var/lib/apt/lists/partial'
    )
    first = [tidy, f'{stage} first "$1" {folder}']
    if not system.added_later:
        return first
    return [
        *first,
        f'cat {folder}/later.sources > "$1"/etc/apt/sources.list.d/later.sources',
        f"{apt} update",
        f"{apt} dist-upgrade",
        f"{apt} install {shlex.join(system.added_later)}",
        f"{apt} purge {shlex.join(system.removed_later)}",
        tidy,
        f'{stage} second "$1" {folder}',
    ]


def _run_build(command: list[str], work: Path) -> None:
    log = work / "log"
    with (
        log.open("wb") as output,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        ) as build,
    ):
        try:
            code = build.wait(timeout=BUILD_TIMEOUT_S)
        except BaseException:
            os.killpg(build.pid, signal.SIGTERM)  # mmdebstrap unmounts and removes its tree
            with contextlib.suppress(subprocess.TimeoutExpired):
                build.wait(timeout=30)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(build.pid, signal.SIGKILL)
            raise
    if code:
        raise RuntimeError(f"mmdebstrap exited with {code}:\n{log.read_text()[-3000:]}")


if __name__ == "__main__":
    print(image_set().folder)
