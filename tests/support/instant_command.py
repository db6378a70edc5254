"""`holdfast instant …` as a test runs it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.support import holdfast_program


def instant(home: Path, verb: str, *words: str, expect: int = 0) -> Any:
    """Return its document; a disk of this machine that is rather full is no failure."""
    done = holdfast_program.run(home, "instant", verb, *words, "--quiet", "--json", expect=None)
    document = json.loads(done.stdout)
    told = {reason["code"] for reason in document.get("reasons", [])}
    full = bool(told) and told <= {"session.space-low", "session.space-urgent"}
    allowed = (expect, 3) if full else (expect,)
    assert done.returncode in allowed, f"{words}: {done.returncode}\n{done.stdout}{done.stderr}"
    return document
