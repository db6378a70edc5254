"""What the guests are made of: Debian packages from the sources the host itself uses.

Only the host's Debian sources count; a third-party repository beside them never reaches a guest.
Nothing is installed on the host: the kernel package is downloaded and unpacked. Synchronous.
Source: apt-get(8) `indextargets`, deb(5).
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

SUITE = "bookworm"
KERNEL = "linux-image-cloud-amd64"
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_TARGET_FORMAT = "$(ORIGIN)\t$(CODENAME)\t$(COMPONENT)\t$(REPO_URI)\t$(RELEASE)"


def run(command: Sequence[str | Path], *, timeout_s: float, text: str | None = None) -> str:
    """Return stdout. Raises RuntimeError with the program's last words."""
    result = subprocess.run(
        [str(word) for word in command],
        input=text,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    if result.returncode:
        raise RuntimeError(f"{command[0]} failed: {result.stderr.strip()[-2000:]}")
    return result.stdout


def debian_sources() -> str:
    """Return the host's Debian sources as one-line entries for mmdebstrap."""
    entries = _source_entries()
    if not entries:  # a fresh container: no index has been fetched yet
        run(["apt-get", "update"], timeout_s=300)
        entries = _source_entries()
    if not entries:
        raise RuntimeError(f"the host has no Debian {SUITE} package source")
    return "\n".join(entries) + "\n"


def _source_entries() -> list[str]:
    command = ["apt-get", "indextargets", "--format", _TARGET_FORMAT, "Created-By: Packages"]
    option = f"[signed-by={_KEYRING}] " if _KEYRING.exists() else ""
    entries = []
    for line in run(command, timeout_s=60).splitlines():
        origin, codename, component, uri, release = line.split("\t")
        if origin == "Debian" and codename.startswith(SUITE) and component == "main":
            entries.append(f"deb {option}{uri} {release} {component}")
    return sorted(set(entries))


def versions(names: Sequence[str]) -> dict[str, str]:
    """Return the version of each package that an installation now would take."""
    debian_sources()  # fetches the index where there is none
    policy = run(["apt-cache", "policy", *names], timeout_s=60)
    found = dict(re.findall(r"^(\S+):\n.*\n  Candidate: (\S+)$", policy, re.MULTILINE))
    if missing := [name for name in names if found.get(name, "(none)") == "(none)"]:
        raise RuntimeError(f"packages without a candidate: {', '.join(missing)}")
    return found


def fetch_kernel(folder: Path) -> Path:
    """Download the current cloud kernel and unpack it under `folder`; return its root."""
    depends = run(["apt-cache", "depends", KERNEL], timeout_s=60)
    match = re.search(r"Depends: (linux-image-\S+)", depends)
    if match is None:
        raise RuntimeError(f"{KERNEL} depends on no kernel image")
    uri_line = run(["apt-get", "download", "--print-uris", match[1]], timeout_s=60)
    package_name = uri_line.split()[1]
    download = folder / "download"
    download.mkdir()
    subprocess.run(
        ["apt-get", "--quiet=2", "download", match[1]],
        cwd=download,
        check=True,
        timeout=300,
        capture_output=True,
    )
    root = folder / "kernel"
    run(["dpkg-deb", "--extract", download / package_name, root], timeout_s=120)
    return root


def kernel_image(root: Path) -> Path:
    """Return the newest kernel under `root`/boot."""
    return max(root.joinpath("boot").glob("vmlinuz-*"))
