"""Shares over SMB 3, served from `start` to `stop`: the devices behind FUSE, smbd before it.

    host -> smbd -> kernel -> `DeviceFiles` -> WriteThroughDevice -> a `BlockDevice` per file

Invariants: what a host was told is written is durable (`WriteThroughDevice`), so a session goes on
after a crash of ours, whatever the host repeats. A share is taken from smbd before its files go,
and these before their devices may be closed. An smbd that ends by itself is started again.

Devices stay the caller's: they are neither closed here nor touched after `stop` or `withdraw` has
returned.
Thread model: any thread; a thread of its own waits for smbd's end.
"""

from __future__ import annotations

import threading
from pathlib import Path

from appliance.base.errors import ApplianceError, UsageError
from appliance.base.log import EventLog
from appliance.blocks.write_through import WriteThroughDevice
from appliance.exports.device_files import DeviceFiles
from appliance.exports.free_port import free_port
from appliance.exports.smb.samba_folder import SambaFolder
from appliance.exports.smb.share import SmbShare
from appliance.exports.smb.smbd_process import SmbdProcess

PORT = 445
_RESTART_PAUSE_S = 1.0
log = EventLog(__name__)


class SmbServer:
    """Starts with the first share and ends with the last."""

    def __init__(self, folder: Path, mount: Path, *, host: str, port: int = PORT) -> None:
        """`folder`: Samba's own. `mount`: where the devices are. `port` 0: a free one, for good."""
        self.host = host
        self.port = port or free_port(host)
        self.samba = SambaFolder(folder)
        self._files = DeviceFiles(mount)
        self._process = SmbdProcess(self.samba, host, self.port)
        self._shares: dict[str, SmbShare] = {}
        self._lock = threading.RLock()
        self._stopping = threading.Event()
        self._keeper: threading.Thread | None = None

    @property
    def running(self) -> bool:
        return self._keeper is not None

    @property
    def smbd_pid(self) -> int:
        """0: there is none right now."""
        return self._process.pid

    def publish(self, share: SmbShare) -> None:
        """Serve it from now on.

        Raises: UsageError: the name is taken. ExternalProgramError, MountError, StorageError,
            DomainFileError.
        """
        with self._lock:
            if share.name in self._shares:
                raise UsageError(f"{share.name} is served already")
            if not self.running:
                self._start()
            self._shares[share.name] = share
            try:
                for name, device in share.files.items():
                    shown = WriteThroughDevice(device)
                    self._files.add(f"{share.name}/{name}", shown, removable=True)
                self._configure()
            except BaseException:
                self.withdraw(share.name)
                raise

    def withdraw(self, name: str) -> None:
        """End its use; on return no device of it is touched any longer. Idempotent.

        With the last one Samba's folder goes, too.
        """
        with self._lock:
            share = self._shares.pop(name, None)
            if share is None or not self.running:
                return
            is_last = not self._shares
            if not is_last:
                self._configure()
                self._process.tell("close-share", name)
            else:
                self._process.stop()
            for file in share.files:
                self._files.remove(f"{name}/{file}")
        if is_last:
            self.stop()
            self.samba.remove()

    def stop(self) -> None:
        """End smbd, then the mount; the account stays, for shares that go on. Idempotent."""
        self._stopping.set()
        with self._lock:
            keeper, self._keeper = self._keeper, None
            self._process.stop()
            self._files.close()
        if keeper is not None:
            keeper.join()

    def _start(self) -> None:
        self._stopping.clear()
        self.samba.prepare(self.host, self.port)
        self._files.open()
        try:
            self._process.start(self._files.folder, self._files.connection_fds)
        except BaseException:
            self._files.close()
            raise
        self._keeper = threading.Thread(target=self._keep, name="smb-keeper")
        self._keeper.start()

    def _configure(self) -> None:
        shares = self._shares.values()
        self.samba.write_config(self.host, self.port, shares, self._files.folder)
        self._process.tell("reload-config")

    def _keep(self) -> None:
        """Start smbd again when it ends by itself."""
        while not self._stopping.is_set():
            self._process.wait_ended()
            with self._lock:
                if self._stopping.is_set():
                    return
                log.warning("smbd ended; starting it again", port=self.port)
                self._process.stop()
                try:
                    self._process.start(self._files.folder, self._files.connection_fds)
                    continue
                except ApplianceError as error:
                    log.error("smbd not started", error=str(error))
            self._stopping.wait(_RESTART_PAUSE_S)
