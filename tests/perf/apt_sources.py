"""The host's own Debian package sources, as deb822 text for mmdebstrap.

No address is written down here: an image is built from where this machine already installs its
packages. Entries that are not Debian itself (other suites, other components) are left out.
Source: sources.list(5), both the one-line and the deb822 style.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

APT_FOLDER = Path("/etc/apt")
OS_RELEASE = Path("/etc/os-release")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    uri: str
    suite: str
    signed_by: str = ""

    def deb822(self) -> str:
        signed = f"Signed-By: {self.signed_by}\n" if self.signed_by else ""
        return f"Types: deb\nURIs: {self.uri}\nSuites: {self.suite}\nComponents: main\n{signed}\n"


def host_codename() -> str:
    match = re.search(r'^VERSION_CODENAME="?([a-z]+)"?$', OS_RELEASE.read_text(), re.MULTILINE)
    if match is None:
        raise ValueError(f"{OS_RELEASE} names no VERSION_CODENAME")
    return match[1]


def host_sources(folder: Path = APT_FOLDER) -> list[Source]:
    """Debian's suites of the host's release, `main` only, in the order apt reads them."""
    codename = host_codename()
    wanted = {codename, f"{codename}-updates", f"{codename}-security"}
    found: list[Source] = []
    for path in [folder / "sources.list", *sorted((folder / "sources.list.d").glob("*"))]:
        if path.suffix == ".list" and path.is_file():
            found += parse_one_line(path.read_text())
        elif path.suffix == ".sources" and path.is_file():
            found += parse_deb822(path.read_text())
    return [source for source in dict.fromkeys(found) if source.suite in wanted]


def as_deb822(sources: Iterable[Source]) -> str:
    return "".join(source.deb822() for source in sources)


def parse_one_line(text: str) -> Iterator[Source]:
    for line in text.splitlines():
        match = re.match(r"deb\s+(?:\[([^\]]*)\]\s+)?(\S+)\s+(\S+)\s+(.*)$", line.strip())
        if match and "main" in match[4].split():
            signed = re.search(r"signed-by=(\S+)", match[1] or "")
            yield Source(uri=match[2], suite=match[3], signed_by=signed[1] if signed else "")


def parse_deb822(text: str) -> Iterator[Source]:
    kept = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    for stanza in re.split(r"\n\s*\n", kept):
        fields = _fields(stanza)
        if fields.get("enabled", "yes").lower() in {"no", "false"}:
            continue
        if "deb" not in fields.get("types", "").split():
            continue
        if "main" not in fields.get("components", "").split():
            continue
        signed_by = fields.get("signed-by", "")
        for uri in fields.get("uris", "").split():
            for suite in fields.get("suites", "").split():
                # An inline key (a whole PGP block) cannot be repeated on one line.
                key = signed_by if signed_by.startswith("/") else ""
                yield Source(uri=uri, suite=suite, signed_by=key)


def _fields(stanza: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    name = ""
    for line in stanza.splitlines():
        if line[:1] in {" ", "\t"}:
            fields[name] = f"{fields.get(name, '')} {line.strip()}".strip()
        elif ":" in line:
            name, _, value = line.partition(":")
            name = name.strip().lower()
            fields[name] = value.strip()
    return fields
