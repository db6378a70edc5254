"""Verification jobs on a hypervisor: the daemon's jobs and server of sessions, in this process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.catalog.catalog import Catalog
from appliance.catalog.job import JOB
from appliance.catalog.job_runs import JobRun
from appliance.catalog.policy import Policy
from appliance.exports.iscsi.server import IscsiServer
from appliance.exports.nfs import NfsServer
from appliance.repository.repository import Repository
from appliance.service.job_service import JobService
from appliance.service.points_in_use import points_in_use
from appliance.service.recoveries import recovery_room
from appliance.service.recovery_server import RecoveryServer

WITHIN_S = 240.0


@dataclass
class ProofService:
    """`address` is where the server of sessions listens."""

    address: str
    catalog: Catalog
    jobs: JobService

    def save(self, **fields: Any) -> None:
        policy = Policy.model_validate({"name": "p", "rto": "10min", "retries": {"attempts": 0}})
        parsed = JOB.validate_python(
            {"name": "proof", "kind": "verification", "policy": "p", "where": "hypervisor"}
            | {"address": self.address}
            | fields
        )
        self.jobs.book.save([policy], [parsed])

    def run(self) -> JobRun:
        run = self.jobs.run_now("proof")
        self.jobs.scheduler.look()
        assert self.jobs.engine.wait_idle(WITHIN_S)
        return self.catalog.job_runs.get(run.run_id)


@contextmanager
def proof_service(
    home: Path, address: str, nfs: NfsServer, iscsi: IscsiServer | None = None
) -> Iterator[ProofService]:
    with (
        Catalog.open(home) as catalog,
        Repository.open(home / "repository") as repository,
    ):
        store = recovery_room(home, catalog, repository).store
        server = RecoveryServer(store, repository, nfs, iscsi=iscsi)
        server.start()
        jobs = JobService(
            catalog, repository, home, lambda: frozenset(points_in_use(home)), recovery=server
        )
        try:
            yield ProofService(address, catalog, jobs)
        finally:
            jobs.stop()
            server.stop()


def stages(vm: dict[str, Any]) -> dict[str, str | None]:
    """Reason code by stage; None: passed."""
    return {stage["stage"]: stage["reason"] for stage in vm["stages"]}
