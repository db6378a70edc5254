"""govmomi's simulated vCenter as a child process on a loopback port, and its client govc.

vcsim ends with our end of its standard input, so also when the test run is killed.
"""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

from tests.support.govmomi_build import BuildError, Programs, programs
from tests.support.needs import missing_reason
from vmware.https import fetch_fingerprint
from vmware.session import Endpoint, Session

USER = "backup"  # vcsim turns away any name with an @
PASSWORD = "correct horse; battery"
API_VERSION = "8.0.3.0"
_START_S = 120
_GOVC_S = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class Vcsim:
    """A running simulator, or another server that is talked to in the same way."""

    address: str
    port: int
    user: str
    password: str
    fingerprint: str
    tools: Programs

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(
            address=self.address,
            port=self.port,
            user=self.user,
            fingerprint_sha256=self.fingerprint,
        )

    def connect(self) -> Session:
        return Session.connect(self.endpoint, lambda: self.password)

    def govc(self, *words: str) -> str:
        """What `govc WORDS…` prints; it logs in as we do, by environment."""
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": os.environ.get("HOME", "/"),
            "GOVC_URL": f"https://{self.address}:{self.port}/sdk",
            "GOVC_USERNAME": self.user,
            "GOVC_PASSWORD": self.password,
            "GOVC_INSECURE": "1",
            "GOVC_PERSIST_SESSION": "false",
        }
        done = subprocess.run(
            [self.tools.govc, *words],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=_GOVC_S,
        )
        assert done.returncode == 0, f"govc {words}: exit {done.returncode}\n{done.stderr}"
        return done.stdout


@contextmanager
def vcsim(*flags: str) -> Iterator[Vcsim]:
    """Run vcsim with these flags beside those for user and version; skips when it cannot be had."""
    try:
        tools = programs()
    except BuildError as error:
        missing_reason(f"no vcsim: {error}")
    command = [str(tools.vcsim), "-username", USER, "-password", PASSWORD, *flags]
    if "-esx" not in flags:
        command += ["-api-version", API_VERSION]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdin and process.stdout and process.stderr
    words: list[str] = []
    reader = threading.Thread(target=lambda: words.extend(process.stderr or ()), daemon=True)
    reader.start()
    stopper = threading.Timer(_START_S, process.kill)
    stopper.start()
    try:
        line = process.stdout.readline()
        stopper.cancel()
        assert line.startswith("GOVC_URL="), f"vcsim did not start: {line} {''.join(words)}"
        url = urlsplit(line.strip().removeprefix("GOVC_URL="))
        assert url.hostname and url.port
        yield Vcsim(
            address=url.hostname,
            port=url.port,
            user=USER,
            password=PASSWORD,
            fingerprint=fetch_fingerprint(url.hostname, url.port),
            tools=tools,
        )
    finally:
        stopper.cancel()
        process.stdin.close()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        reader.join()
        process.stdout.close()
        process.stderr.close()
