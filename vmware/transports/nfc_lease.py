"""HTTP NFC leases: the leave to download or upload the disks of a VM, kept alive while it is used.

A lease blocks power, migration and deletion of its VM, and ends by itself when nobody reports
progress for some minutes (300 s): so nothing that dies here blocks a VM for longer than that.

Invariants: from `ready` on a thread reports progress well before the time runs out; every lease
that was asked for is completed or aborted; a device is fetched only from the host whose certificate
the lease names, or from the server we are logged in to.
Thread model: methods may be called from several threads; `end` joins the progress thread.
Source: design notes section 4c; vSphere API reference, HttpNfcLease.
"""

from __future__ import annotations

import http.client
import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import Any
from urllib.parse import urlsplit

from pyVmomi import vim

from vmware import https
from vmware.errors import (
    BusyError,
    CancelledError,
    CertificateError,
    DeadlineError,
    FileFaultError,
    ObjectGoneError,
    ProtocolError,
    VsphereError,
)
from vmware.faults import translate
from vmware.properties import fetch_one
from vmware.session import Session

log = logging.getLogger(__name__)

READY_WITHIN_S = 300.0
STREAM_WAIT_S = 300.0  # of one wait for data: a host may search long for the next used block
_FIRST_POLL_S = 0.02
_LONGEST_POLL_S = 1.0
_REPORT_S = 20.0  # or a quarter of the lease's time, whatever is less
_MOST_URL = 4096


class Outcome(Enum):
    COMPLETE = "complete"
    ABORT = "abort"


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseDevice:
    """One thing that the lease lets us transfer. `key` ends in `ControllerType0:1` or `nvram`."""

    key: str
    import_key: str
    is_disk: bool
    url: str
    thumbprint: str  # of the host's certificate; empty: the server's


class Lease:
    """Made by `acquire`, in state ready; `end` it."""

    def __init__(self, session: Session, handle: vim.HttpNfcLease, info: Any, what: str) -> None:
        self._session = session
        self._handle = handle
        self._what = what
        self._percent = 0
        self._ending = threading.Event()
        self._lock = threading.Lock()
        self._failure: VsphereError | None = None
        self.entity_moref = str(info.entity._GetMoId())
        self.devices: tuple[LeaseDevice, ...] = tuple(map(_device, info.deviceUrl or ()))
        timeout_s = float(info.leaseTimeout or 0) or 300.0
        self._reporter = threading.Thread(
            target=self._report,
            args=(min(_REPORT_S, timeout_s / 4),),
            name="nfc-lease",
            daemon=True,
        )
        self._reporter.start()

    @classmethod
    def acquire(
        cls,
        session: Session,
        what: str,
        ask: Callable[[], vim.HttpNfcLease],
        *,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Lease:
        """Ask for a lease and wait until it is ready.

        Args:
            what: for messages: “export web”.
            ask: calls the server, as `snapshot.ExportSnapshot` does.

        Raises:
            VsphereError: the server refused, or the lease went into error; nothing is left of it.
            DeadlineError: it did not become ready in `READY_WITHIN_S`.
        """
        handle = session.call(what, ask)
        try:
            info = _wait_until_ready(session, handle, what, cancelled)
            return cls(session, handle, info, what)
        except BaseException:
            with suppress(VsphereError):
                session.call(f"{what}: abort", handle.Abort, None)
            raise

    def device(self, address: str) -> LeaseDevice:
        """The disk at `ControllerType0:1`, by its key or import key.

        Raises:
            FileFaultError: the lease has none there.
        """
        for device in self.devices:
            if address in (device.key.rpartition("/")[2], device.import_key.rpartition("/")[2]):
                return device
        there = ", ".join(device.key for device in self.devices) or "nothing"
        raise FileFaultError(f"{self._what}: no disk {address} in the lease, which has {there}")

    def connect(self, device: LeaseDevice) -> tuple[http.client.HTTPSConnection, str]:
        """A verified connection to where the device is, and the request's target.

        Raises:
            VsphereError: no connection, or nobody said which certificate it has to show.
        """
        endpoint = self._session.endpoint
        try:
            parts = urlsplit(device.url)
            host, port = parts.hostname or "", parts.port or 443
        except ValueError as error:
            raise ProtocolError(f"{self._what}: a lease with an odd address") from error
        if parts.scheme != "https" or len(device.url) > _MOST_URL or not parts.path:
            raise ProtocolError(f"{self._what}: a lease with an odd address")
        pin: str | None = device.thumbprint
        if host == "*":
            host, port = endpoint.address, parts.port or endpoint.port
        if not pin:
            if (host, port) != (endpoint.address, endpoint.port):
                raise CertificateError(f"{self._what}: the lease names no certificate of {host}")
            pin = endpoint.fingerprint_sha256
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        return https.connect(host, port, pin, STREAM_WAIT_S), target

    def progress(self, percent: int) -> None:
        """What the next report says; cheap."""
        self._percent = max(0, min(99, percent))

    def check(self) -> None:
        """Raises the VsphereError because of which the lease is gone, if it is."""
        if self._failure is not None:
            raise self._failure

    def end(self, outcome: Outcome) -> None:
        """Complete or abort it; idempotent, the first outcome counts.

        Aborting an import removes what it made. Never raises when aborting: the server does it by
        itself when the lease runs out.

        Raises:
            VsphereError: it could not be completed.
        """
        with self._lock:
            if self._ending.is_set():
                return
            self._ending.set()
        self._reporter.join()
        if outcome is Outcome.COMPLETE:
            self._session.call(f"{self._what}: report the end", self._handle.Progress, 100)
            self._session.call(f"{self._what}: complete", self._handle.Complete)
            return
        try:
            self._session.call(f"{self._what}: abort", self._handle.Abort, None)
        except ObjectGoneError:
            pass
        except VsphereError as error:
            log.warning(
                "%s: the lease was not aborted and runs out by itself: %s", self._what, error
            )

    def _report(self, every_s: float) -> None:
        while not self._ending.wait(every_s):
            try:
                self._session.read(f"{self._what}: progress", self._handle.Progress, self._percent)
            except VsphereError as error:
                if not error.retryable:
                    self._failure = error
                    log.warning("%s: the lease is gone: %s", self._what, error)
                    return
                log.info("%s: progress could not be reported: %s", self._what, error)


def _wait_until_ready(
    session: Session, handle: vim.HttpNfcLease, what: str, cancelled: Callable[[], bool]
) -> Any:
    """The lease's `info`."""
    give_up_s = time.monotonic() + READY_WITHIN_S
    pause_s = _FIRST_POLL_S
    while True:
        values = fetch_one(session, what, handle, ["state", "error", "info"]).values
        state = str(values.get("state", ""))
        if state == "ready":
            if values.get("info") is None:
                raise ProtocolError(f"{what}: the server tells nothing about the lease")
            return values["info"]
        if state in ("error", "done"):
            fault = values.get("error")
            if fault is None:
                raise BusyError(f"{what}: the lease ended before it began")
            raise translate(fault, what)
        if cancelled():
            raise CancelledError(f"{what}: cancelled")
        if time.monotonic() > give_up_s:
            raise DeadlineError(f"{what}: no lease within {READY_WITHIN_S:.0f} s")
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_POLL_S)


def _device(url: Any) -> LeaseDevice:
    return LeaseDevice(
        key=str(url.key or ""),
        import_key=str(url.importKey or ""),
        is_disk=bool(url.disk),
        url=str(url.url or ""),
        thumbprint=str(url.sslThumbprint or ""),
    )
