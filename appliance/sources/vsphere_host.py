"""A registered vCenter or ESXi host, logged in: where everything of vSphere begins.

Data path: `service.hosts` opens a `VsphereHost` for a registered host; listing, backup and restore
work through its `session`. Every call here raises errors of the appliance (`vsphere_errors`).

Thread model: as `vmware.session`: any thread, calls block. Close it when done.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPSConnection
from typing import Self

from appliance.base.errors import UsageError
from appliance.base.secret import Secret
from appliance.sources.host_about import HostAbout, LackingPurpose
from appliance.sources.vsphere_errors import as_appliance_errors
from vmware import https
from vmware.errors import ProtocolError
from vmware.privileges import BACKUP, Purpose, missing_privileges
from vmware.session import Endpoint, Session

CONNECT_TIMEOUT_S = 20.0
_HEX = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class HostLogin:
    """What it takes to log in, apart from the password."""

    name: str  # as the operator calls it
    address: str
    port: int
    user: str
    fingerprint: str  # SHA-256 of the certificate, "AA:BB:…"


class VsphereHost:
    def __init__(self, login: HostLogin, session: Session) -> None:
        self.login = login
        self.session = session

    @classmethod
    def connect(cls, login: HostLogin, password: Callable[[], Secret]) -> Self:
        """Log in; `password` is asked now and whenever the session has to be made anew.

        Raises:
            VsphereCertificateError: not the pinned certificate; no password was sent.
            VsphereLoginError, VsphereUnreachableError, VsphereProtocolError.
        """
        endpoint = Endpoint(
            address=login.address,
            port=login.port,
            user=login.user,
            fingerprint_sha256=login.fingerprint,
        )
        with as_appliance_errors(login.name):
            return cls(login, Session.connect(endpoint, lambda: password().reveal().decode()))

    @property
    def name(self) -> str:
        return self.login.name

    @property
    def about(self) -> HostAbout:
        about = self.session.about
        return HostAbout(
            product=about.name,
            version=about.version,
            build=about.build,
            is_vcenter=self.session.is_vcenter,
            server_id=about.instance_uuid or f"{self.login.address}:{self.login.port}",
        )

    def lacking_purposes(self) -> list[LackingPurpose]:
        """Return what the account lacks at the inventory's root, by purpose; empty: nothing.

        Raises: as `vsphere_errors`.
        """
        with as_appliance_errors(self.name):
            missing = missing_privileges(self.session, tuple(Purpose))
        return [
            LackingPurpose(
                purpose=purpose,
                needed_to_back_up=purpose in BACKUP,
                privileges=tuple(item.privilege for item in missing if item.purpose is purpose),
            )
            for purpose in Purpose
            if any(item.purpose is purpose for item in missing)
        ]

    def close(self) -> None:
        """Log out; idempotent, never raises."""
        self.session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


def shown_fingerprint(name: str, address: str, port: int) -> str:
    """Return the SHA-256 of the certificate that the server shows now; sends no request.

    Raises: VsphereUnreachableError, VsphereProtocolError.
    """
    with as_appliance_errors(name):
        return https.fetch_fingerprint(address, port, CONNECT_TIMEOUT_S)


def accepted_fingerprint(name: str, address: str, port: int, accepted: str) -> str:
    """Return the SHA-256 of the server's certificate if it is the accepted one.

    Args:
        accepted: SHA-256 or SHA-1, with or without colons, as openssl and vSphere print it.

    Raises:
        UsageError: `accepted` is no fingerprint.
        VsphereCertificateError: it is another one; VsphereUnreachableError, VsphereProtocolError.
    """
    digits = accepted.rpartition("=")[2].replace(":", "").replace(" ", "").strip().lower()
    if not _HEX.fullmatch(digits):
        raise UsageError(f"{accepted!r} is not a SHA-256 or SHA-1 fingerprint")
    with as_appliance_errors(name):
        connection = https.connect(address, port, digits, CONNECT_TIMEOUT_S)
        try:  # of this very connection: a SHA-1 that matched must not vouch for another one
            return https.spelled(hashlib.sha256(_certificate_of(connection)).hexdigest())
        finally:
            connection.close()


def _certificate_of(connection: HTTPSConnection) -> bytes:
    certificate = connection.sock.getpeercert(binary_form=True)
    if not isinstance(certificate, bytes):
        raise ProtocolError("the server showed no certificate")
    return certificate
