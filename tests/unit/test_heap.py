"""The heap keeps what is freed."""

from __future__ import annotations

import subprocess
import sys

_CHILD = """
import resource
from appliance.base.heap import keep_freed_memory
keep_freed_memory()
def faults(rounds):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        buffers = [b"x" * (1 << 20) for _ in range(4)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults(2)
print(faults(50))
"""


def test_buffers_are_made_of_what_was_freed() -> None:
    """Fifty times four buffers of 1 MiB cost hardly a page fault once there is memory for them."""
    child = subprocess.run(
        [sys.executable, "-c", _CHILD], capture_output=True, check=True, text=True, timeout=60
    )
    assert int(child.stdout) < 256  # pages; a heap that trims itself takes 1,024 each time
