"""Numbers on the command line that have bounds: outside of them is a usage error, exit code 2.

Thread model: pure.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

PORT_MAX = 65535


def whole(least: int, most: int) -> Callable[[str], int]:
    """The `type` of an option that takes a whole number of these bounds."""

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is no number from {least} to {most}")
        return number

    return parse


port = whole(0, PORT_MAX)


def seconds(text: str) -> float:
    """The `type` of an option that takes a time, which ends."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")
    return number
