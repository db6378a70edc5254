"""An NFS datastore: one export, mounted by hosts that each have a connection and a heartbeat.

A mount asks for the root's attributes and the free space every `heartbeat_s`. After `failures_max`
failures in a row it is inaccessible (AllPathsDown_Start, later AllPathsDown_Timeout) until one
succeeds. Files are reached through the first mount that is accessible, and not at all without one.
Thread model: any thread; each mount has a heartbeat of its own, which `close` joins.
Source: design notes on vSphere, section 5, "Heartbeat".
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from lab.esx.datastore import DatastoreKind, LabDatastore
from lab.esx.errors import FileFaultError, HostError
from lab.esx.files import Space
from lab.esx.nfs_files import NfsFiles
from lab.esx.nfs_mount import MountFailedError, Remote, mount, unmount

_HURRIED_TIMEOUT_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class NasTimings:
    """Shorter than those of ESXi: 12 s, 5 s, 10, 140 s; locks 10 s."""

    heartbeat_s: float = 1.0
    heartbeat_timeout_s: float = 3.0
    failures_max: int = 3
    apd_timeout_s: float = 140.0
    call_timeout_s: float = 30.0
    lock_update_s: float = 2.0
    lock_updates_missed: int = 3  # then its owner is dead


class InaccessibleError(FileFaultError):
    """All paths to the datastore are down."""


class NasMount:
    """Of one host. `source` is its vmkernel address; `changed` is called when `reason` changes."""

    def __init__(
        self,
        remote: Remote,
        *,
        source: str,
        timings: NasTimings,
        read_only: bool,
        changed: Callable[[], None],
    ) -> None:
        """Mount. Raises MountFailedError."""
        self.remote = remote
        self.read_only = read_only
        self.reason = ""  # why it is inaccessible
        self._source = source
        self._timings = timings
        self._changed = changed
        self._mounted = mount(remote, source=source, timeout_s=timings.call_timeout_s)
        self.files = NfsFiles(
            self._mounted.client, self._mounted.address, remote.path, read_only=read_only
        )
        try:
            self.space = self.files.space()  # as last seen
        except HostError as error:
            unmount(self._mounted, remote, source=source)
            raise MountFailedError(f"{remote.host}:{remote.path}: {error}") from error
        self._ended = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="lab-heartbeat", daemon=True)
        self._heart.start()

    @property
    def accessible(self) -> bool:
        return not self.reason

    def hurry(self) -> None:
        """From now on, wait for a server that does not answer no longer than to be sure."""
        self._mounted.client.timeout_s = _HURRIED_TIMEOUT_S

    def close(self) -> None:
        """Unmount. Idempotent."""
        if self._ended.is_set():
            return
        self._ended.set()
        unmount(self._mounted, self.remote, source=self._source)
        self._heart.join()

    def _beat(self) -> None:
        timings = self._timings
        failures, down_since_s = 0, 0.0
        while not self._ended.wait(timings.heartbeat_s):
            started_s = time.monotonic()
            try:
                client = self._mounted.client
                client.get_attributes(client.root, timeout_s=timings.heartbeat_timeout_s)
                self.space = self.files.space(timeout_s=timings.heartbeat_timeout_s)
            except HostError:
                down_since_s = down_since_s if failures else started_s
                failures += 1
            else:
                failures = 0
            if self._ended.is_set():
                return
            if not failures:
                self._say("")
            elif failures >= timings.failures_max:
                waited = time.monotonic() - down_since_s > timings.apd_timeout_s
                self._say("AllPathsDown_Timeout" if waited else "AllPathsDown_Start")

    def _say(self, reason: str) -> None:
        if reason != self.reason:
            self.reason = reason
            self._changed()


class NasDatastore(LabDatastore):
    """`changed` is called, from any thread, whenever a mount's accessibility is another."""

    def __init__(self, name: str, remote: Remote) -> None:
        super().__init__(name, kind=DatastoreKind.NFS)
        self.remote = remote
        self.changed: Callable[[], None] = lambda: None
        self._lock = threading.Lock()
        self._mounts: dict[str, NasMount] = {}

    def mount_on(
        self, host: str, *, source: str, timings: NasTimings, read_only: bool = False
    ) -> None:
        """Raises MountFailedError."""
        made = NasMount(
            self.remote,
            source=source,
            timings=timings,
            read_only=read_only,
            changed=lambda: self.changed(),
        )
        with self._lock:
            self._mounts[host] = made

    def unmount_from(self, host: str) -> None:
        """Idempotent."""
        with self._lock:
            gone = self._mounts.pop(host, None)
        if gone is not None:
            gone.close()

    def mount_of(self, host: str) -> NasMount | None:
        with self._lock:
            return self._mounts.get(host)

    @property
    def files(self) -> NfsFiles:
        """Raises InaccessibleError."""
        with self._lock:
            mounts = list(self._mounts.values())
        for one in mounts:
            if one.accessible:
                return one.files
        raise InaccessibleError(f"the datastore {self.name} is not accessible")

    @property
    def accessible(self) -> bool:
        with self._lock:
            return any(one.accessible for one in self._mounts.values())

    def space(self) -> Space:
        """As a heartbeat saw it last; does not block."""
        with self._lock:
            mounts = list(self._mounts.values())
        best = next((one for one in mounts if one.accessible), mounts[0] if mounts else None)
        return best.space if best is not None else Space(capacity_bytes=0, free_bytes=0)

    def hurry(self) -> None:
        with self._lock:
            mounts = list(self._mounts.values())
        for one in mounts:
            one.hurry()

    def close(self) -> None:
        with self._lock:
            mounts, self._mounts = list(self._mounts.values()), {}
        for one in mounts:
            one.close()
