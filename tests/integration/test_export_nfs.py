"""`holdfast export nfs` with clients that nobody here wrote: libnfs's programs and QEMU."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.holdfast_program import HOLDFAST, run_holdfast
from tests.support.needs import needs_program

CONTENT = os.urandom(3 << 20) + bytes(5 << 20)
pytestmark = [pytest.mark.integration, needs_program("nfs-cat"), needs_program("nfs-cp")]
