"""A registered Hyper-V host, logged in: where everything of Hyper-V begins.

Data path: `service.hosts` opens a `HypervHost` for a registered host; listing and backup work
through its `session` (scripts) and `smb` (disk files). Every call here raises errors of the
appliance (`hyperv_errors`).

Thread model: as `hyperv.host_session`: any thread, calls block. Close it when done.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Self

from appliance.base.errors import UsageError
from appliance.base.run_context import CancelToken
from appliance.base.secret import Secret
from appliance.sources.host_about import HostAbout, LackingPurpose
from appliance.sources.hyperv_errors import HypervUnreachableError, hyperv_calls
from appliance.sources.hyperv_node import NodeAddress, as_text, from_text
from hyperv import pinned_http
from hyperv.host_session import TRIES, HostSession
from hyperv.inventory import cluster, host_facts
from hyperv.patience import Patience
from hyperv.script_types import HostFacts, Vm
from hyperv.smb_files import PORT as SMB_PORT
from hyperv.smb_files import Protection, SmbLogin
from hyperv.winrm_session import Endpoint, Login, Scheme

HTTPS_PORT = 5986
HTTP_PORT = 5985
LOGINS = tuple(login.value for login in Login)


@dataclass(frozen=True, slots=True, kw_only=True)
class HypervLogin:
    """What it takes to log in, apart from the password."""

    name: str  # as the operator calls it
    address: str
    port: int
    user: str
    fingerprint: str  # SHA-256 of the certificate, "AA:BB:…"; empty over plain HTTP
    login: Login = Login.NTLM
    scheme: Scheme = Scheme.HTTPS
    smb_port: int = SMB_PORT
    smb_protection: Protection = Protection.SIGNED
    nodes: tuple[NodeAddress, ...] = ()  # the other ones of its failover cluster

    @property
    def each_first(self) -> list[Self]:
        """This login, then the same with each of the other nodes in the place of the first."""
        own = NodeAddress(
            address=self.address,
            port=self.port,
            smb_port=self.smb_port,
            fingerprint=self.fingerprint,
        )
        every = (own, *self.nodes)
        return [
            replace(
                self,
                **asdict(node),
                nodes=tuple(other for other in every if other is not node),
            )
            for node in every
        ]

    @property
    def others(self) -> list[Self]:
        """One login for each of the other nodes, by itself."""
        return [replace(each, nodes=()) for each in self.each_first[1:]]

    @property
    def settings(self) -> dict[str, str]:
        """What the catalog keeps of it besides the columns of every host."""
        return {
            "login": self.login.value,
            "scheme": self.scheme.value,
            "smb_port": str(self.smb_port),
            "smb_protection": self.smb_protection.value,
            **({"nodes": as_text(self.nodes)} if self.nodes else {}),
        }

    @classmethod
    def from_settings(
        cls,
        settings: Mapping[str, str],
        *,
        name: str,
        address: str,
        port: int,
        user: str,
        fingerprint: str,
    ) -> Self:
        """Raises UsageError: settings that this version does not know."""
        try:
            return cls(
                name=name,
                address=address,
                port=port,
                user=user,
                fingerprint=fingerprint,
                login=Login(settings.get("login", Login.NTLM.value)),
                scheme=Scheme(settings.get("scheme", Scheme.HTTPS.value)),
                smb_port=int(settings.get("smb_port", SMB_PORT)),
                smb_protection=Protection(settings.get("smb_protection", Protection.SIGNED.value)),
                nodes=from_text(settings.get("nodes", "[]")),
            )
        except ValueError as error:
            raise UsageError(f"host {name!r}: {error}; remove it and add it again") from None


class HypervHost:
    """`others` log in to the other nodes of its cluster that are registered with it."""

    def __init__(
        self,
        login: HypervLogin,
        session: HostSession,
        smb: SmbLogin,
        facts: HostFacts,
        others: Sequence[Callable[[], HypervHost]] = (),
    ) -> None:
        self.login = login
        self.others = tuple(others)
        self.session = session
        self.smb = smb
        self.facts = facts

    @classmethod
    def connect(
        cls, login: HypervLogin, password: Callable[[], Secret], tries: int = TRIES
    ) -> Self:
        """Log in and ask what the host is; `password` is asked at each login.

        Raises:
            HypervCertificateError: not the pinned certificate; no password was sent.
            HypervLoginError, HypervUnreachableError, HypervProtocolError, …
        """

        def text() -> str:
            return password().reveal().decode()

        with hyperv_calls(login.name):
            session = HostSession(
                Endpoint(
                    address=login.address,
                    port=login.port,
                    user=login.user,
                    login=login.login,
                    scheme=login.scheme,
                    fingerprint_sha256=login.fingerprint,
                    password=text,
                )
            )
            try:
                facts = host_facts(session, tries=tries)
            except BaseException:
                session.close()
                raise
        smb = SmbLogin(
            address=login.address,
            port=login.smb_port,
            user=login.user,
            password=text,
            protection=login.smb_protection,
            is_kerberos=login.login is Login.KERBEROS,
        )
        others = [partial(cls.connect, other, password, 1) for other in login.others]
        return cls(login, session, smb, facts, others)

    @classmethod
    def connect_any(cls, login: HypervLogin, password: Callable[[], Secret]) -> Self:
        """As `connect`, to the first of its nodes that answers."""
        for each in login.each_first if login.nodes else ():
            with suppress(HypervUnreachableError):
                return cls.connect(each, password, 1)
        return cls.connect(login, password)

    @property
    def name(self) -> str:
        return self.login.name

    @property
    def about(self) -> HostAbout:
        facts = self.facts
        return HostAbout(
            product=f"Hyper-V on {facts.os_caption}",
            version=facts.os_version,
            build=facts.os_version.rpartition(".")[2],
            is_vcenter=False,
            server_id=f"hyperv/{facts.fqdn.lower()}",
        )

    @property
    def vm_server_id(self) -> str:
        """Who the VMs of this host belong to: one that moves within a cluster stays the same."""
        facts = self.facts
        return f"hyperv/{(facts.cluster or facts.fqdn).lower()}"

    def knows_vm(self, vm_id: str, here: Sequence[Vm], patience: Patience) -> bool:
        """Whether the VM is among those `here`, or belongs to any node of the cluster.

        Raises HypervError.
        """
        if any(vm.id == vm_id for vm in here):
            return True
        return bool(self.facts.cluster) and bool(cluster(self.session, patience).owner_of(vm_id))

    def lacking_purposes(self) -> list[LackingPurpose]:
        """Return what stands in the way of backups on this host; empty: nothing."""
        lacking = []
        if not self.facts.administrator:
            lacking.append(_lacking("back up VMs", "member of the local Administrators"))
        if not self.facts.hyperv:
            lacking.append(_lacking("back up VMs", "the Hyper-V role with its PowerShell module"))
        return lacking

    def close(self) -> None:
        """Log out; idempotent, never raises."""
        self.session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


def patience_until(cancel: CancelToken) -> Patience:
    """Waits for the host that end when `cancel` is asked for."""

    def wait(seconds: float) -> None:
        cancel.wait(seconds)

    return Patience(is_cancelled=lambda: cancel.cancelled, wait=wait)


def _lacking(purpose: str, what: str) -> LackingPurpose:
    return LackingPurpose(purpose=purpose, needed_to_back_up=True, privileges=(what,))


def shown_fingerprint(name: str, address: str, port: int) -> str:
    """Return the SHA-256 of the certificate that the host shows now; sends no request.

    Raises: HypervUnreachableError, HypervProtocolError.
    """
    with hyperv_calls(name):
        return pinned_http.shown_fingerprint(address, port)


def accepted_fingerprint(name: str, address: str, port: int, accepted: str) -> str:
    """Return the SHA-256 of the host's certificate if it is the accepted one.

    Raises: HypervCertificateError, HypervUnreachableError, HypervProtocolError.
    """
    with hyperv_calls(name):
        return pinned_http.check_fingerprint(address, port, accepted)
