"""A logged-in session with a vCenter or ESXi host: everything of this library goes through one.

Invariants: credentials leave only over a connection whose certificate was verified
(`vmware.https`); the password is asked for at each login and never kept. All calls may come from
several threads; a call blocks its thread. A lost session is replaced once per call, by one thread
for all; managed objects stay usable across that, because the stub stays, while views, filters and
collectors die with the session: make them inside the function given to `call`, which is repeated as
a whole. One background thread per session keeps it alive; `close` ends and joins it.
Source: design notes section 0; vSphere Web Services SDK programming guide, session management;
`vimServiceVersions.xml`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http.cookies import SimpleCookie
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar
from xml.etree import ElementTree

from pyVmomi import VmomiSupport, vim
from pyVmomi.SoapAdapter import SoapStubAdapter

from vmware import https
from vmware.errors import ProtocolError, SessionLostError, UnreachableError, VsphereError
from vmware.faults import translated

KEEP_ALIVE_S = 300.0  # sessions die after 30 min without a call; data-plane reads do not count
REQUEST_TIMEOUT_S = 120.0  # of one wait for the network
POOL_IDLE_S = 30.0  # servers drop idle connections sooner than pyVmomi's 900 s
REPEATS_AFTER_S = (0.2, 1.0, 3.0)  # of a read that met a broken connection

_VERSIONS_PATH = "/sdk/vimServiceVersions.xml"
_VERSIONS_BYTES_MAX = 1 << 20
_COOKIE_NAME = "vmware_soap_session"

_P = ParamSpec("_P")
_R = TypeVar("_R")
_M = TypeVar("_M", bound=VmomiSupport.ManagedObject)


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where to log in and as whom. `fingerprint_sha256` None: the system's CAs must vouch."""

    address: str
    port: int = 443
    user: str
    fingerprint_sha256: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What the server says it is."""

    name: str
    version: str
    build: str
    api_type: str
    api_version: str
    instance_uuid: str  # empty on ESXi


class _PinnedStub(SoapStubAdapter):
    """pyVmomi's transport over pinned connections; answers it cannot parse become ProtocolError."""

    def __init__(self, endpoint: Endpoint, version: str, timeout_s: float) -> None:
        super().__init__(  # type: ignore[no-untyped-call]
            host=endpoint.address,
            port=endpoint.port,
            version=version,
            connectionPoolTimeout=POOL_IDLE_S,
        )
        self.scheme: Any = https.PinnedConnection
        self.schemeArgs = {"fingerprint": endpoint.fingerprint_sha256, "timeout": timeout_s}

    def InvokeMethod(self, mo: Any, info: Any, args: Any, outerStub: Any = None) -> Any:
        try:
            return super().InvokeMethod(mo, info, args, outerStub)  # type: ignore[no-untyped-call]
        except (TypeError, AttributeError, KeyError, ValueError) as error:
            # Arguments were checked before this point, so it is the answer.
            raise ProtocolError(f"{info.name}: the answer makes no sense: {error!r}") from error


class Session:
    """Open with `Session.connect`; a context manager that closes itself."""

    def __init__(
        self,
        endpoint: Endpoint,
        password: Callable[[], str],
        stub: SoapStubAdapter,
        keep_alive_s: float,
    ) -> None:
        self.endpoint = endpoint
        self._password = password
        self._stub = stub
        self._keep_alive_s = keep_alive_s
        self._instance = vim.ServiceInstance("ServiceInstance", stub)
        self._login_lock = threading.Lock()
        self._logins = 0
        self._closing = threading.Event()
        with translated(f"ask {endpoint.address} what it is"):
            self.content: Any = self._instance.RetrieveContent()  # vim.ServiceInstanceContent
        about = self.content.about
        self.about = About(
            name=about.name or "",
            version=about.version or "",
            build=about.build or "",
            api_type=about.apiType or "",
            api_version=about.apiVersion or "",
            instance_uuid=about.instanceUuid or "",
        )
        self._log_in()
        self._keeper = threading.Thread(
            target=self._keep_alive, name=f"vsphere-keep-alive-{endpoint.address}", daemon=True
        )
        self._keeper.start()

    @classmethod
    def connect(
        cls,
        endpoint: Endpoint,
        password: Callable[[], str],
        *,
        keep_alive_s: float = KEEP_ALIVE_S,
        timeout_s: float = REQUEST_TIMEOUT_S,
    ) -> Session:
        """Log in.

        Args:
            password: asked at this login and at each later one; what it returns is not kept.

        Raises:
            CertificateError: The pin does not match; neither user nor password was sent.
            LoginError: User or password is wrong.
            UnreachableError, ProtocolError: Nobody answers, or nobody that speaks vSphere.
        """
        stub = _PinnedStub(endpoint, _newest_common_version(endpoint, timeout_s), timeout_s)
        try:
            return cls(endpoint, password, stub, keep_alive_s)
        except BaseException:
            stub.DropConnections()  # type: ignore[no-untyped-call]
            raise

    def clone(self) -> Session:
        """A second login with a connection of its own, for a thread that blocks in long calls."""
        return Session.connect(
            self.endpoint,
            self._password,
            keep_alive_s=self._keep_alive_s,
            timeout_s=self._stub.schemeArgs["timeout"],
        )

    @property
    def is_vcenter(self) -> bool:
        return self.about.api_type == "VirtualCenter"

    @property
    def cookie(self) -> str:
        """Value of `vmware_soap_session`, without quotes: a secret, never to be logged."""
        morsel = SimpleCookie(self._stub.cookie).get(_COOKIE_NAME)
        if morsel is None:
            raise SessionLostError(f"{self.endpoint.address} gave no session cookie")
        return morsel.value

    def ask_password(self) -> str:
        """For the REST interface, which has a login of its own."""
        return self._password()

    def object(self, kind: type[_M], moref: str) -> _M:
        """A handle on an object by its id; asks the server nothing, so it may not exist."""
        handle: _M = kind(moref, self._stub)
        return handle

    def call(
        self, what: str, function: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs
    ) -> _R:
        """Run `function` against the server; the session is replaced once if it was lost.

        The server refuses before it acts when the session is lost, so a repeated method acts once;
        a `function` of several calls must bear being started again.

        Args:
            what: for messages: “read the inventory”.

        Raises:
            VsphereError: of the kind that fits, by `vmware.faults`.
        """
        logins = self._logins
        try:
            with translated(what):
                return function(*args, **kwargs)
        except SessionLostError:
            self._log_in_again(logins)
        with translated(what):
            return function(*args, **kwargs)

    def read(
        self, what: str, function: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs
    ) -> _R:
        """`call` for what changes nothing: repeated, with pauses, after a broken connection."""
        for pause_s in REPEATS_AFTER_S:
            with suppress(UnreachableError):
                return self.call(what, function, *args, **kwargs)
            if self._closing.wait(pause_s):
                break
        return self.call(what, function, *args, **kwargs)

    def close(self) -> None:
        """Log out, end the background thread, close all connections. Idempotent; never raises."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._keeper.join()
        self._stub.DropConnections()
        self._stub.schemeArgs["timeout"] = min(10.0, self._stub.schemeArgs["timeout"])
        with suppress(VsphereError), translated("log out"):
            self._manager.Logout()
        self._stub.DropConnections()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def _manager(self) -> Any:
        return self.content.sessionManager

    def _log_in(self) -> None:
        with translated(f"log in to {self.endpoint.address} as {self.endpoint.user}"):
            self._manager.Login(self.endpoint.user, self._password(), None)
        self._logins += 1

    def _log_in_again(self, logins: int) -> None:
        with self._login_lock:
            if self._logins == logins:
                self._log_in()

    def _keep_alive(self) -> None:
        while not self._closing.wait(self._keep_alive_s):
            with suppress(VsphereError):  # the next call meets it too, and reports it
                self.call("keep the session", self._instance.CurrentTime)


def _newest_common_version(endpoint: Endpoint, timeout_s: float) -> str:
    """The newest API version (pyVmomi's name of it) that the server lists and pyVmomi knows."""
    connection = https.connect(
        endpoint.address, endpoint.port, endpoint.fingerprint_sha256, min(timeout_s, 30.0)
    )
    where = f"{endpoint.address}:{endpoint.port}"
    try:
        with translated(f"ask {where} for its API versions"):
            connection.request("GET", _VERSIONS_PATH)
            response = connection.getresponse()
            document = response.read(_VERSIONS_BYTES_MAX + 1)
    finally:
        connection.close()
    if response.status in (502, 503, 504):
        raise UnreachableError(f"{where} does not answer yet: HTTP {response.status}")
    if response.status != 200 or len(document) > _VERSIONS_BYTES_MAX:
        raise ProtocolError(f"{where} is no vCenter or ESXi host: HTTP {response.status}")
    try:
        offered = {element.text for element in ElementTree.fromstring(document).iter("version")}
    except ElementTree.ParseError as error:
        raise ProtocolError(f"{where} is no vCenter or ESXi host: {error}") from error
    for version in VmomiSupport.GetServiceVersions("vim25"):  # newest first
        if VmomiSupport.versionIdMap[version] in offered:
            return str(version)
    raise ProtocolError(f"{where} speaks no API version that is known here: {offered}")
