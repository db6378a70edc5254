"""One nbdkit child that serves one disk on a Unix socket in a private folder.

The child dies with us, also by kill -9: nbdkit asks the kernel for that (`--exit-with-parent`). The
kernel means the *thread* that started the child, so the child gets a thread of its own that lives
as long as it does.

A secret reaches the child as a memory file that it inherits, so it is neither in the argument list
nor in a file that a crash would leave. What the child says is kept for messages, without the
secret.

Thread model: start and close from any thread; `close` may be called several times.

Source: nbdkit(1), nbdkit-plugin(3) (`password=+FILE`), prctl(2) PR_SET_PDEATHSIG.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from vmware.errors import TransportError, UnsupportedError

READY_WITHIN_S = 60.0
_POLL_S = 0.02
_ENDS_WITHIN_S = 10.0
_LAST_WORDS_BYTES = 2048


class NbdkitProcess:
    """A running nbdkit. `socket_path` accepts connections once the constructor has returned."""

    def __init__(
        self,
        program: str,
        arguments: Callable[[str], Sequence[str]],
        *,
        secret: str,
        ready_within_s: float = READY_WITHIN_S,
    ) -> None:
        """Start and wait until it listens.

        `arguments` gets the file that holds the secret, and returns plugin, filters and parameters.

        Raises:
            UnsupportedError: there is no such program.
            TransportError: it gave up, or did not listen in time; nothing is left.
        """
        self._secret = secret
        self._words = tempfile.TemporaryFile()  # noqa: SIM115  (closed by close)
        self._folder = Path(tempfile.mkdtemp(prefix="holdfast-nbdkit-"))  # mode 0700
        self.socket_path = self._folder / "socket"
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._failure: OSError | ValueError | None = None
        self._started = threading.Event()
        self._command = (program, arguments)
        self._keeper = threading.Thread(target=self._keep, name="nbdkit-keeper", daemon=True)
        self._keeper.start()
        try:
            self._await_ready(program, ready_within_s)
        except BaseException:
            self.close()
            raise

    def last_words(self) -> str:
        """What it wrote to stderr last, on one line, without the secret."""
        if self._words.closed:
            return ""
        descriptor = self._words.fileno()
        size = os.fstat(descriptor).st_size
        raw = os.pread(descriptor, _LAST_WORDS_BYTES, max(size - _LAST_WORDS_BYTES, 0))
        text = " ".join(raw.decode(errors="replace").split())
        return text.replace(self._secret, "***") if self._secret else text

    def close(self) -> None:
        """End it and remove its folder; idempotent."""
        with self._lock:
            if self._words.closed:
                return
            self._started.wait()
            if self._process is not None:
                self._process.terminate()
                self._keeper.join(_ENDS_WITHIN_S)
                if self._keeper.is_alive():
                    self._process.kill()
            self._keeper.join()
            self._words.close()
            shutil.rmtree(self._folder, ignore_errors=True)

    def _keep(self) -> None:
        """Be the parent of the child for as long as it lives."""
        program, arguments = self._command
        secret = os.memfd_create("secret", 0)
        try:
            os.write(secret, self._secret.encode())
            self._process = subprocess.Popen(
                [
                    program,
                    "--foreground",
                    "--exit-with-parent",
                    "--readonly",
                    f"--unix={self.socket_path}",
                    f"--pidfile={self._pid_path}",
                    *arguments(f"/proc/self/fd/{secret}"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._words,
                pass_fds=(secret,),
                env={k: v for k, v in os.environ.items() if k != "LD_LIBRARY_PATH"},
                start_new_session=True,  # Ctrl-C is for us to handle
            )
        except (OSError, ValueError) as error:
            self._failure = error
        finally:
            os.close(secret)
            self._started.set()
        if self._process is not None:
            self._process.wait()

    @property
    def _pid_path(self) -> Path:
        return self._folder / "pid"  # written when it listens

    def _await_ready(self, program: str, within_s: float) -> None:
        self._started.wait()
        if isinstance(self._failure, FileNotFoundError):
            raise UnsupportedError(f"{program} is not installed")
        if self._failure is not None:
            raise TransportError(f"{program} cannot be started: {self._failure}")
        ends = time.monotonic() + within_s
        while not self._pid_path.exists():
            self._keeper.join(_POLL_S)
            if not self._keeper.is_alive():
                raise TransportError(f"{program} gave up: {self.last_words()}")
            if time.monotonic() > ends:
                raise TransportError(f"{program} is not ready: {self.last_words()}")
