"""What is in the image: every Debian package and every wheel, with version and licence.

CycloneDX 1.5, JSON, without a time or serial number, so the same contents make the same document.
Source: CycloneDX 1.5 JSON; package-url types deb and pypi.
"""

from __future__ import annotations

import email
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lab.guests.packages import run

_FIELDS = "${Package}\t${Version}\t${Architecture}\t${source:Package}\n"


def bill_of_materials(tree: Path, wheels: Path, version: str) -> bytes:
    components = [*_debian(tree), *_python(wheels)]
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "component": {
                "type": "firmware",
                "name": "holdfast-appliance",
                "version": version,
                "licenses": [{"license": {"id": "Apache-2.0"}}],
            }
        },
        "components": components,
    }
    return json.dumps(document, indent=1, sort_keys=True).encode() + b"\n"


def _debian(tree: Path) -> Iterator[dict[str, Any]]:
    listed = run(
        ["dpkg-query", f"--admindir={tree}/var/lib/dpkg", "-W", "-f", _FIELDS], timeout_s=60
    )
    for line in sorted(listed.splitlines()):
        name, version, architecture, source = line.split("\t")
        yield {
            "type": "library",
            "name": name,
            "version": version,
            "purl": f"pkg:deb/debian/{name}@{quote(version)}?arch={architecture}&distro=bookworm",
            "properties": [{"name": "debian:source", "value": source}],
        }


def _python(wheels: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(path) as wheel:
            (name,) = (n for n in wheel.namelist() if n.endswith(".dist-info/METADATA"))
            metadata = email.message_from_bytes(wheel.read(name))
        licence = metadata.get("License-Expression") or metadata.get("License") or ""
        component: dict[str, Any] = {
            "type": "library",
            "name": metadata["Name"],
            "version": metadata["Version"],
            "purl": f"pkg:pypi/{metadata['Name'].lower()}@{quote(metadata['Version'])}",
        }
        if licence and len(licence) < 200:
            component["licenses"] = [{"license": {"name": licence.strip()}}]
        yield component
