"""Which versions of the API are served: vSphere 8.0.3.0 and what it grew out of.

A client asks for a version in the SOAPAction header. One that is newer than ours, or unknown, is
served as ours, as vpxd does for the first call of a client that has not yet negotiated.
"""

from __future__ import annotations

import re
from functools import cache
from xml.sax.saxutils import escape

from pyVmomi.Version import IsChildVersion
from pyVmomi.VmomiSupport import GetServiceVersions, versionIdMap, versionMap

API_VERSION = "8.0.3.0"
NEWEST: str = versionMap[f"vim25/{API_VERSION}"]
_LEGACY: str = versionMap["vim25/2.5"]  # a client that names no version
_PUBLIC = re.compile(r"[0-9]+(\.[0-9]+){1,3}")


def version_of(soap_action: str | None) -> str:
    """Return pyVmomi's name of the version that a SOAPAction header asks for."""
    uri = (soap_action or "").strip().strip('"')
    if not uri.startswith("urn:vim25/"):
        return _LEGACY
    version: str | None = versionMap.get(uri.removeprefix("urn:"))
    if version is None or not IsChildVersion(NEWEST, version):
        return NEWEST
    return version


@cache
def service_versions_document() -> bytes:
    """What `/sdk/vimServiceVersions.xml` holds."""
    prior = [
        versionIdMap[version]
        for version in GetServiceVersions("vim25")
        if version != NEWEST and IsChildVersion(NEWEST, version)
    ]
    lines = "".join(
        f"<version>{escape(name)}</version>" for name in prior if _PUBLIC.fullmatch(name)
    )
    return (
        '<?xml version="1.0" encoding="UTF-8" ?>\n<namespaces version="1.0"><namespace>'
        f"<name>urn:vim25</name><version>{API_VERSION}</version>"
        f"<priorVersions>{lines}</priorVersions></namespace></namespaces>\n"
    ).encode()
