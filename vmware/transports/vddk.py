"""nbdkit with its VDDK plugin: fast reads through VMware's own library, which the customer brings.

    start -> an NBD server on a Unix socket -> whoever speaks NBD reads the disk -> close

This library speaks no NBD, so `start` gives an `NbdEndpoint` instead of a `DiskReader`; the
product's adapter joins it to its NBD client. VDDK can crash its process, and runs in nbdkit's,
never in ours.

VDDK wants the SHA-1 thumbprint of the server's certificate. It is computed from the certificate
that the pinned SHA-256 fingerprint was checked against, on the same connection.

Thread model: stateless; several disks may be started at once, each with a process of its own.

Source: nbdkit-vddk-plugin(1); nbdkit-blocksize-filter(1); design notes section 4d.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from vmware import https
from vmware.errors import InvalidRequestError, UnreachableError, UnsupportedError
from vmware.session import Endpoint
from vmware.transports.contract import DiskRequest, Refusal
from vmware.transports.nbdkit_process import NbdkitProcess

CHECK_WITHIN_S = 60.0
_CONNECT_WITHIN_S = 30.0
_VERSION_KEY = "vddk_library_version"
_ANSWER_LIMIT_CHARS = 65536


class NbdEndpoint(Protocol):
    """A disk that is served over NBD on a Unix socket, for reading, to several connections."""

    @property
    def socket_path(self) -> Path: ...

    def last_words(self) -> str:
        """What the server said last, for messages; without secrets."""
        ...

    def close(self) -> None:
        """End the server; idempotent. Connections end with it."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class VddkLibrary:
    """Where `vmware-vix-disklib-distrib` was unpacked, and the program that loads it."""

    folder: Path
    program: str = "nbdkit"


def check_library(library: VddkLibrary) -> str:
    """Load the library once; return its version.

    Raises: UnsupportedError: it does not work, in the words of nbdkit.
    """
    command = [library.program, "vddk", "--dump-plugin", f"libdir={library.folder}"]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=CHECK_WITHIN_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnsupportedError(f"{library.program} cannot be run: {error}") from error
    answer = done.stdout[:_ANSWER_LIMIT_CHARS].decode(errors="replace")
    values = dict(line.partition("=")[::2] for line in answer.splitlines())
    if done.returncode or _VERSION_KEY not in values:
        words = " ".join(done.stderr[-2048:].decode(errors="replace").split())
        raise UnsupportedError(f"the VDDK in {library.folder} does not load: {words or 'no word'}")
    return values[_VERSION_KEY]


def sha1_thumbprint(endpoint: Endpoint) -> str:
    """Of the server's certificate, once that has matched the pin: `aa:bb:…`.

    Raises: CertificateError, UnreachableError, ProtocolError.
    """
    pin = endpoint.fingerprint_sha256
    connection = https.connect(endpoint.address, endpoint.port, pin, _CONNECT_WITHIN_S)
    try:
        certificate = connection.sock.getpeercert(binary_form=True)
    finally:
        connection.close()
    if not certificate:
        raise UnreachableError(f"{endpoint.address} showed no certificate")
    return hashlib.sha1(certificate, usedforsecurity=False).digest().hex(":")


class Vddk:
    """The transport `vddk`, up to the NBD socket."""

    name = "vddk"

    def __init__(
        self,
        library: VddkLibrary | None,
        password: Callable[[], str],
        *,
        thumbprint: Callable[[Endpoint], str] = sha1_thumbprint,
    ) -> None:
        """`password` is asked for at each start, and what it returns is not kept after the end."""
        self._library = library
        self._password = password
        self._thumbprint = thumbprint

    def refusal(self, request: DiskRequest) -> Refusal | None:
        if self._library is None:
            return Refusal(
                code="transport.vddk-not-configured",
                text="no VDDK is configured",
                next_step="download the VDDK from Broadcom and name its folder, if wanted",
            )
        if shutil.which(self._library.program) is None:
            return Refusal(
                code="transport.vddk-no-nbdkit",
                text=f"{self._library.program} is not installed",
                next_step="install nbdkit and its VDDK plugin",
            )
        if not any(self._library.folder.glob("lib64/libvixDiskLib.so*")):
            return Refusal(
                code="transport.vddk-no-library",
                text=f"there is no lib64/libvixDiskLib.so in {self._library.folder}",
                next_step="unpack the VDDK there, or name the folder that it is in",
            )
        return None

    def start(self, request: DiskRequest) -> NbdEndpoint:
        """Serve the frozen disk.

        Raises: UnsupportedError, InvalidRequestError, TransportError, and as `thumbprint`; nothing
        is left running.
        """
        if self._library is None:
            raise UnsupportedError("no VDDK is configured")
        password = self._password()
        endpoint = request.session.endpoint
        parameters = {
            "libdir": str(self._library.folder),
            "server": endpoint.address,
            "port": str(endpoint.port),
            "user": endpoint.user,
            "thumbprint": self._thumbprint(endpoint),
            "vm": f"moref={request.vm.moref}",
            "snapshot": request.snapshot_moref,
            "transports": "nbdssl:nbd",
            "file": request.disk.file_name,
        }
        for name, text in {**parameters, "password": password}.items():
            if not text or any(ord(c) < 32 for c in text):
                raise InvalidRequestError(f"VDDK cannot take this {name}: empty or with controls")

        def arguments(secret_path: str) -> list[str]:
            return [
                "--filter=blocksize",
                "vddk",
                *(f"{name}={text}" for name, text in parameters.items()),
                f"password=+{secret_path}",
                "minblock=512",
            ]

        return NbdkitProcess(self._library.program, arguments, secret=password)
