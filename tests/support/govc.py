"""govc, which nobody here wrote, as a client of the practice vCenter."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

from lab.vcenter.lab_vcenter import LabVcenter
from tests.support.govmomi_build import BuildError, programs
from tests.support.needs import missing_reason

Govc = Callable[..., str]
_TIMEOUT_S = 60


class GovcError(Exception):
    """govc ended with an error; its words."""


def govc_for(vcenter: LabVcenter) -> Govc:
    """`run(*words, **environment)` returns stdout or raises GovcError; skips without govc."""
    try:
        program: Path = programs().govc
    except BuildError as error:
        missing_reason(f"no govc: {error}")
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": os.environ.get("HOME", "/"),
        "GOVC_URL": vcenter.url,
        "GOVC_USERNAME": vcenter.user,
        "GOVC_PASSWORD": vcenter.password,
        "GOVC_INSECURE": "1",
        "GOVC_PERSIST_SESSION": "false",
    }

    def run(*words: str | Path, **changed: str) -> str:
        done = subprocess.run(
            [program, *words],
            env=environment | changed,
            capture_output=True,
            text=True,
            check=False,
            timeout=_TIMEOUT_S,
        )
        if done.returncode:
            raise GovcError(done.stderr)
        return done.stdout

    return run
