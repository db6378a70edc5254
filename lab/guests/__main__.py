"""`python -m lab.guests tiny|debian|uefi`: build if needed, print the image's path."""

from __future__ import annotations

import argparse

from lab.guests import GuestKind, build


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m lab.guests")
    parser.add_argument("kind", type=GuestKind, choices=list(GuestKind))
    print(build(parser.parse_args().kind))


if __name__ == "__main__":
    main()
