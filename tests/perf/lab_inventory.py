"""The practice vCenter with many machines, as a program: `python -m tests.perf.lab_inventory
COUNT`.

Prints one JSON line (address, port, user, password, fingerprint) and serves until its standard
input ends.
"""

from __future__ import annotations

import json
import sys

from lab.vcenter.inventory import add_synthetic_machines, build_inventory
from lab.vcenter.lab_vcenter import LabVcenter


def main() -> None:
    with LabVcenter() as vcenter:
        add_synthetic_machines(build_inventory(vcenter), int(sys.argv[1]))
        place = {
            "address": vcenter.address,
            "port": vcenter.port,
            "user": vcenter.user,
            "password": vcenter.password,
            "fingerprint": vcenter.fingerprint,
        }
        print(json.dumps(place), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
