"""A disk image of a format that is not ours, through a qemu-nbd child and a Unix socket.

qemu-nbd gets its listening socket by socket activation (LISTEN_FDS, sd_listen_fds(3)), so we
connect at once instead of polling for a file, and see it fail as a closed connection. The socket's
folder (mode 0700) is removed as soon as the connections stand. Without `--persistent` qemu-nbd
exits when its last client goes: killing this process with -9 leaves neither a child nor a file.

The format is always named, `file` is always the plain file driver (a name such as `nbd:…` or
`json:…` is a file name), and no backing file is opened unless external files are allowed.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from appliance.blocks.extents import MappedExtent
from appliance.sources.errors import ImageProgramError, NbdError, SourceReadError
from appliance.sources.image_format import ImageFormat
from appliance.sources.nbd_client import NbdDevice

_DRIVERS = {
    ImageFormat.RAW: "raw",
    ImageFormat.QCOW2: "qcow2",
    ImageFormat.VMDK: "vmdk",
}
_WITH_BACKING = {ImageFormat.QCOW2, ImageFormat.VMDK}
_CONNECTIONS = 4
_EXIT_WITHIN_S = 60  # writes back what it caches, when it was writable
_LAST_WORDS_BYTES = 2048
# The shell moves the socket from stdin to descriptor 3 and names its own process id, as
# sd_listen_fds wants, without a fork hook in a process that has threads.
_ACTIVATE = 'exec 3<&0 </dev/null; LISTEN_PID=$$ exec "$@"'


class QemuNbd:
    """A running qemu-nbd and a `NbdDevice` connected to it. `close` ends both."""

    def __init__(
        self,
        path: Path,
        image_format: ImageFormat,
        *,
        writable: bool = False,
        allow_external: bool = False,
        connections: int = _CONNECTIONS,
    ) -> None:
        """Raises ImageProgramError: qemu-nbd is missing or refused the image."""
        self._path = path
        program = shutil.which("qemu-nbd")
        if program is None:
            raise ImageProgramError("qemu-nbd is not installed (Debian package qemu-utils)")
        options = _image_options(path, image_format, writable, allow_external)
        self._words: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  (closed by close)
        access = ("--cache=unsafe", "--discard=unmap") if writable else ("--read-only",)
        command = [program, *access, f"--shared={connections}", f"json:{options}"]
        with tempfile.TemporaryDirectory(prefix="holdfast-nbd-") as folder:
            address = f"{folder}/socket"
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(address)
                listener.listen(connections)
                self._process: subprocess.Popen[bytes] = subprocess.Popen(
                    ["/bin/sh", "-c", _ACTIVATE, "sh", *command],
                    stdin=listener.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=self._words,
                    env={**os.environ, "LISTEN_FDS": "1"},
                    start_new_session=True,  # Ctrl-C is for us to handle
                )
                sockets = [_connect(address) for _ in range(connections)]
            # Our copy of the listener is closed: if qemu-nbd gives up, the connections end.
            try:
                self.device = NbdDevice(sockets)
            except NbdError as error:
                self._stop(within_s=1)
                raise ImageProgramError(f"{path}: {self.last_words() or error}") from error
            except BaseException:
                self._stop(within_s=0)
                raise

    def last_words(self) -> str:
        """What qemu-nbd wrote to stderr last, on one line."""
        end = self._words.seek(0, os.SEEK_END)
        self._words.seek(max(end - _LAST_WORDS_BYTES, 0))
        return " ".join(self._words.read().decode(errors="replace").split())

    def close(self) -> None:
        """Disconnect and wait; idempotent. Raises ImageProgramError: it did not end well."""
        if self._words.closed:
            return
        self.device.close()
        code = self._stop(within_s=_EXIT_WITHIN_S)
        words = self.last_words()
        self._words.close()
        if code:
            raise ImageProgramError(f"{self._path}: qemu-nbd ended with {code}: {words}")

    def abandon(self) -> None:
        """End it at once, whatever it still had to write; idempotent."""
        self._stop(within_s=0)
        self.device.close()
        self._words.close()

    def _stop(self, *, within_s: float) -> int:
        try:
            return self._process.wait(within_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


class QemuImageReader:
    """A `BlockReader` over a `QemuNbd` that it owns; its errors name the image."""

    def __init__(self, path: Path, image_format: ImageFormat, *, allow_external: bool) -> None:
        self._path = path
        self._server = QemuNbd(path, image_format, allow_external=allow_external)
        self._device = self._server.device

    @property
    def size_bytes(self) -> int:
        return self._device.size_bytes

    def close(self) -> None:
        self._server.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._server.abandon()

    def read_at(self, offset: int, length: int) -> bytes:
        try:
            return self._device.read_at(offset, length)
        except NbdError as error:
            raise self._failed(offset, error) from error

    def read_into(self, offset: int, buffer: memoryview) -> None:
        try:
            self._device.read_into(offset, buffer)
        except NbdError as error:
            raise self._failed(offset, error) from error

    def try_read_at(self, offset: int, length: int) -> bytes | memoryview | None:
        return self._device.try_read_at(offset, length)

    def map_extents(self, offset: int, length: int) -> list[MappedExtent]:
        try:
            return self._device.map_extents(offset, length)
        except NbdError as error:
            raise self._failed(offset, error) from error

    def _failed(self, offset: int, error: NbdError) -> SourceReadError:
        words = self._server.last_words()
        return SourceReadError(f"{self._path}: byte {offset}: {error} {words}".rstrip())


def _image_options(
    path: Path, image_format: ImageFormat, writable: bool, allow_external: bool
) -> str:
    options: dict[str, object] = {
        "driver": _DRIVERS[image_format],
        "read-only": not writable,
        "file": {"driver": "file", "filename": str(path.absolute())},
    }
    if image_format in _WITH_BACKING and not allow_external:
        options["backing"] = None
    return json.dumps(options)


def _connect(address: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(address)
    return sock
