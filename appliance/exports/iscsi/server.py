"""iSCSI targets, served from `start` to `stop`: the devices behind FUSE, tgtd before it.

    host -> tgtd -> kernel -> `DeviceFiles` -> WriteThroughDevice -> a `BlockDevice` per LUN

Invariants: what a host was told is written is durable, because it outlives us and would not write
it again (`WriteThroughDevice`). A target is removed from tgtd before its file goes, and its file
before the device may be closed. A tgtd that ends by itself is started again with all targets.

Devices stay the caller's: they are neither closed here nor touched after `stop` or `withdraw` has
returned.
Thread model: any thread; a thread of its own waits for tgtd's end.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from appliance.base.errors import ApplianceError, UsageError
from appliance.base.log import EventLog
from appliance.blocks.write_through import WriteThroughDevice
from appliance.exports.device_files import DeviceFiles
from appliance.exports.free_port import free_port
from appliance.exports.iscsi.target import IscsiTarget, Lun
from appliance.exports.iscsi.tgt_control import TgtControl, TgtError
from appliance.exports.iscsi.tgt_process import TgtProcess

PORT = 3260
_RESTART_PAUSE_S = 1.0
log = EventLog(__name__)


class IscsiServer:
    """A context manager for `start` and `stop`."""

    def __init__(self, folder: Path, *, host: str, port: int = PORT) -> None:
        """`folder`: where the devices are mounted. `port` 0: a free one, the same for good."""
        self.host = host
        self.port = port or free_port(host)
        self._files = DeviceFiles(folder)
        self._process = TgtProcess(host, self.port)
        self._control: TgtControl | None = None
        self._targets: dict[str, IscsiTarget] = {}
        self._lock = threading.RLock()
        self._stopping = threading.Event()
        self._keeper: threading.Thread | None = None

    def __enter__(self) -> IscsiServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def running(self) -> bool:
        return self._keeper is not None

    @property
    def target_names(self) -> tuple[str, ...]:
        """Of what was published and not withdrawn."""
        return tuple(self._targets)

    @property
    def tgtd_pid(self) -> int:
        """0: there is none right now."""
        return self._process.pid

    def start(self) -> None:
        """Return once hosts can log in to what was published.

        Raises: ExternalProgramError, MountError, UsageError: nothing is served then.
        """
        if any(each in str(self._files.folder) for each in " ,"):
            raise UsageError(f"{self._files.folder}: tgt takes no path with spaces or commas")
        with self._lock:
            self._stopping.clear()
            self._files.open()
            try:
                for target in self._targets.values():
                    self._show(target)
                self._start_tgtd()
            except BaseException:
                self._stop_tgtd()
                self._files.close()
                raise
            self._keeper = threading.Thread(target=self._keep, name="iscsi-keeper")
            self._keeper.start()

    def stop(self) -> None:
        """End all sessions and tgtd, then the mount; join every thread. Idempotent."""
        self._stopping.set()
        with self._lock:
            keeper, self._keeper = self._keeper, None
            self._stop_tgtd()
            self._files.close()
        if keeper is not None:
            keeper.join()

    def publish(self, target: IscsiTarget) -> None:
        """Serve it from now on, or from `start` on.

        Raises: UsageError: the name is taken. TgtError.
        """
        with self._lock:
            if target.name in self._targets:
                raise UsageError(f"{target.name} is served already")
            self._targets[target.name] = target
            if not self.running:
                return
            try:
                self._show(target)
                if self._control is not None:
                    _configure(self._control, target, self._file_of)
            except BaseException:
                self.withdraw(target.name)
                raise

    def withdraw(self, name: str) -> None:
        """End its sessions; on return no device of it is touched any longer. Idempotent."""
        with self._lock:
            target = self._targets.pop(name, None)
            if target is None or not self.running:
                return
            if self._control is not None:
                _remove(self._control, target)
            for lun in target.luns:
                self._files.remove(_file_name(target, lun))

    def _show(self, target: IscsiTarget) -> None:
        for lun in target.luns:
            self._files.add(
                _file_name(target, lun),
                lun.device if lun.read_only else WriteThroughDevice(lun.device),
                read_only=lun.read_only,
            )

    def _file_of(self, target: IscsiTarget, lun: Lun) -> Path:
        return self._files.folder / _file_name(target, lun)

    def _start_tgtd(self) -> None:
        self._control = self._process.start(self._files.folder, self._files.connection_fds)
        for target in self._targets.values():
            _configure(self._control, target, self._file_of)

    def _stop_tgtd(self) -> None:
        if self._control is not None:
            for target in self._targets.values():
                _remove(self._control, target)
        self._process.stop()
        self._control = None

    def _keep(self) -> None:
        """Start tgtd again when it ends by itself."""
        while not self._stopping.is_set():
            self._process.wait_ended()
            with self._lock:
                if self._stopping.is_set():
                    return
                log.warning("tgtd ended; starting it again", port=self.port)
                self._process.stop()
                self._control = None
                try:
                    self._start_tgtd()
                    continue
                except ApplianceError as error:
                    log.error("tgtd not started", error=str(error))
                    self._process.stop()
                    self._control = None
            self._stopping.wait(_RESTART_PAUSE_S)


def _configure(
    control: TgtControl, target: IscsiTarget, file_of: Callable[[IscsiTarget, Lun], Path]
) -> None:
    """Who may log in is said last: before that nobody may."""
    control.add_target(target.number, target.name)
    control.add_account(target.number, target.chap)
    for lun in target.luns:
        control.add_lun(target.number, lun, file_of(target, lun))
    for initiator in target.initiators:
        control.admit(target.number, initiator)


def _remove(control: TgtControl, target: IscsiTarget) -> None:
    with suppress(TgtError):  # not there, or tgtd is gone with it
        control.remove_target(target.number)
    with suppress(TgtError):
        control.remove_account(target.chap.user)


def _file_name(target: IscsiTarget, lun: Lun) -> str:
    return f"{target.number:08x}-{lun.number}"
