"""Pages over a large catalog: 10,000 VMs, 1,000,000 recovery points, 100,000 runs of jobs, as many
for single VMs, 300,000 verifications. From the request to the last byte, over TLS on loopback, with
one client; the median of several requests after a first one. The inventory is known already: it is
asked of the hypervisors at most once a minute.
"""

from __future__ import annotations

import sqlite3
import statistics
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from appliance.api.services import Services
from appliance.base.secret import Secret
from appliance.base.units import GIB, MIB
from appliance.catalog.accounts import Role
from appliance.catalog.hosts import HostKind, HostRecord
from appliance.catalog.points import PointRow
from appliance.service.inventory import InventoryCache
from appliance.sources.listed_vm import ChangeTracking, ListedDisk, ListedVm
from appliance.sources.vm_identity import VmIdentity
from tests.perf.context import Bench
from tests.perf.table import Goal, Row, Samples
from tests.support.api_server import Client, api_serving

NAME = "dashboard"
_VMS, _POINTS_OF_VM = 10_000, 100
_QUICK_VMS, _QUICK_POINTS_OF_VM = 100, 20
_JOB_RUNS_OF_DAY, _DAYS = 1000, 100
_REQUESTS = 5
_GOAL_S = 0.3
_AT_ONCE = 20_000
_PAGES = (
    ("dashboard", "/"),
    ("list of VMs", "/vms"),
    ("page of a VM", "/vms/vm-00007"),
    ("list of runs", "/runs"),
    ("a page of 100 points", "/api/v1/points?limit=100"),
    ("100 points of a VM", "/api/v1/points?limit=100&vm=vm-00007"),
    ("repository", "/repository"),
    ("metrics", "/metrics"),
)


def run(bench: Bench) -> list[Row]:
    vms, of_vm = (_QUICK_VMS, _QUICK_POINTS_OF_VM) if bench.quick else (_VMS, _POINTS_OF_VM)
    with bench.folder(NAME) as home, api_serving(home) as (services, port):
        started = time.perf_counter()
        fill(services, home, vms, of_vm)
        print(f"  filled in {time.perf_counter() - started:.0f} s", flush=True)
        services.catalog.accounts.create(
            "bench", Secret.of_text("correct horse battery"), Role.ADMINISTRATOR
        )
        client = Client(port)
        client.log_in("bench", "correct horse battery")
        return [_measured(client, what, path, vms * of_vm) for what, path in _PAGES]


def _measured(client: Client, what: str, path: str, points: int) -> Row:
    seconds = []
    for number in range(_REQUESTS + 1):
        if path == "/metrics" and number:
            time.sleep(5.1)  # until it makes the text anew
        started = time.perf_counter()
        answer = client.call("GET", path)
        if number:
            seconds.append(time.perf_counter() - started)
        assert answer.status == 200, f"{path}: {answer.status} {answer.body[:200]!r}"
    print(
        f"  {what}: {statistics.median(seconds) * 1000:.0f} ms, {len(answer.body)} bytes",
        flush=True,
    )
    return Row(
        section=NAME,
        measure=f"{what}, {points:,} points".replace(",", " "),
        unit="s",
        ours=Samples(values=tuple(seconds)),
        peer="0.3 s",
        theirs=Samples(values=(_GOAL_S,)),
        goal=Goal(limit=1) if path != "/metrics" else None,
    )


def fill(services: Services, home: Path, vms: int, of_vm: int) -> None:
    now = datetime.now(UTC)
    catalog = services.catalog
    catalog.hosts.add(
        HostRecord(
            name="vc",
            kind=HostKind.VSPHERE,
            address="vc.example.org",
            port=443,
            user="u",
            fingerprint="AA",
            server_id="server",
            added_at=now,
        ),
        Secret.of_text("p"),
    )
    listed = tuple(_listed(number) for number in range(vms))
    services.inventory.stop()
    services.inventory = InventoryCache(catalog, ask=lambda _: listed, kept_s=1e9)
    services.inventory.get()
    batch: list[PointRow] = []
    for row in _points(now, vms, of_vm):
        batch.append(row)
        if len(batch) == _AT_ONCE:
            catalog.points.add(batch)
            batch.clear()
    catalog.points.add(batch)
    _fill_runs(home, now, vms)


def _listed(number: int) -> ListedVm:
    """One in twenty has no recovery point."""
    identity = VmIdentity(server_id="server", moref=f"vm-{number}", instance_uuid=_uuid(number))
    return ListedVm(
        host="vc",
        name=_name(number),
        identity=identity,
        moref=f"vm-{number}",
        power="on",
        folder=f"/dc/vm/team {number % 40}",
        runs_on=f"esx{number % 32}.example.org",
        change_tracking=ChangeTracking.ENABLED,
        disks=(
            ListedDisk(
                key=2000, label="Hard disk 1", size_bytes=80 * GIB, file_name="", obstacle=None
            ),
        ),
        obstacles=(),
    )


def _points(now: datetime, vms: int, of_vm: int) -> Iterator[PointRow]:
    for day in reversed(range(of_vm)):
        at = now - timedelta(days=day)
        for number in range(vms):
            if number % 20 == 19:
                number -= 1
                at += timedelta(seconds=1)
            yield PointRow(
                point_id=f"{at:%Y%m%dT%H%M%SZ}-{day:06x}{number:06x}",
                vm=_name(number),
                vm_key=f"server/{_uuid(number)}",
                created_at=at,
                consistency="application",
                parent=None,
                source="vsphere",
                disk_count=1,
                size_bytes=80 * GIB,
                stored_bytes=300 * MIB + number,
            )


def _fill_runs(home: Path, now: datetime, vms: int) -> None:
    """Straight into the tables: no run of a job ends a hundred thousand times in a bench."""
    per_day, days = (_JOB_RUNS_OF_DAY, _DAYS) if vms == _VMS else (10, 10)
    with sqlite3.connect(home / "catalog.sqlite") as connection:
        times = [
            (now - timedelta(days=day, minutes=number)).isoformat()
            for day in reversed(range(days))
            for number in range(per_day)
        ]
        connection.executemany(
            "INSERT INTO job_runs (run_id, job, kind, cause, first_run, attempt, queued_at,"
            " started_at, ended_at, outcome, reasons, result, told)"
            " VALUES (?1, ?2, 'backup', 'schedule', ?1, 1, ?3, ?3, ?3, 'success', '[]', '{}', 1)",
            ((f"run-{n:08}", f"job-{n % 50}", at) for n, at in enumerate(times)),
        )
        connection.executemany(
            "INSERT INTO runs (run_id, kind, vm, host, started_at, ended_at, outcome, result,"
            " job_run) VALUES (?, 'backup', ?, 'vc', ?, ?, 'success', '{}', ?)",
            (
                (f"vmrun-{n:08}", _name(n % vms), at, at, f"run-{n:08}")
                for n, at in enumerate(times)
            ),
        )
        connection.executemany(
            "INSERT INTO verifications (run_id, vm, point_id, started_at, verdict, recovery_s,"
            " rto_s, point_age_s, rpo_s, certificate, place, reasons)"
            " VALUES (?, ?, 'p', ?, 'passed', 40.0, 60.0, 3600.0, 86400.0, NULL, 'sandbox', '')",
            (
                (f"verify-{night:04}", _name(number), (now - timedelta(days=night)).isoformat())
                for night in range(30 if vms == _VMS else 3)
                for number in range(vms)
            ),
        )
    connection.close()


def _name(number: int) -> str:
    return f"vm-{number:05}"


def _uuid(number: int) -> str:
    return f"50000000-0000-0000-0000-{number:012}"
