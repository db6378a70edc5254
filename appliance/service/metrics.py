"""What Prometheus asks: the state of jobs, VMs, repository, sessions and notifications as figures.

Everything is read from the catalog and from what the daemon knows anyway; no hypervisor is asked
and no disk tree is walked while somebody waits (`RepositoryFigures` does that beside, seldom).
Labels are names of jobs and VMs and words of ours; of VMs at most `VMS_MAX` are shown.

Thread model: `families` may run on any thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path

from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric

from appliance.base.errors import StorageError
from appliance.base.log import EventLog
from appliance.base.version import __version__
from appliance.catalog.catalog import Catalog
from appliance.catalog.job_runs import RunState
from appliance.catalog.notifications import Delivery
from appliance.catalog.runs import RunOutcome
from appliance.service.inventory import InventoryCache
from appliance.service.job_service import JobService
from appliance.service.recovery_server import RecoveryServer
from appliance.service.repository_figures import RepositoryDisk, RepositoryFigures, repository_disk

log = EventLog(__name__)

VMS_MAX = 20_000
_GROWTH_DAYS = 14


class ApplianceMetrics:
    """A collector of prometheus_client (`collect`)."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        repository_path: Path,
        jobs: JobService,
        recovery: RecoveryServer,
        inventory: InventoryCache,
        figures: RepositoryFigures,
    ) -> None:
        self._catalog = catalog
        self._path = repository_path
        self._jobs = jobs
        self._recovery = recovery
        self._inventory = inventory
        self._figures = figures

    def describe(self) -> Sequence[Metric]:
        """Nothing is collected when the collector is registered."""
        return ()

    def collect(self) -> Iterator[Metric]:
        info = InfoMetricFamily("holdfast", "The appliance")
        info.add_metric((), {"version": __version__})
        yield info
        yield from self._of_jobs()
        yield from self._of_vms()
        yield from self._of_verifications()
        yield from self._of_repository()
        yield from self._of_daemon()

    def _of_jobs(self) -> Iterator[Metric]:
        labels = ("job", "kind")
        outcome = _gauge("job_last_outcome", "1 for how the last run ended", *labels, "outcome")
        ended = _gauge("job_last_end_timestamp_seconds", "When the last run ended", *labels)
        good = _gauge(
            "job_last_good_timestamp_seconds",
            "When a run last ended well or with warnings",
            *labels,
        )
        lasted = _gauge("job_last_duration_seconds", "How long the last run took", *labels)
        read = _gauge("job_last_read_bytes", "Read from hypervisors by the last backup", *labels)
        stored = _gauge("job_last_stored_bytes", "Stored by the last backup", *labels)
        following = _gauge("job_next_run_timestamp_seconds", "When it is due next", *labels)
        running = _gauge("job_open", "1 while a run waits or goes on", *labels)
        enabled = _gauge("job_enabled", "1 if its schedule counts", *labels)
        runs = self._catalog.job_runs
        for status in self._jobs.jobs():
            job = status.saved.job
            which = (job.name, job.kind)
            enabled.add_metric(which, job.enabled)
            running.add_metric(which, status.open_run is not None)
            if status.next_run_at is not None:
                following.add_metric(which, status.next_run_at.timestamp())
            latest = status.latest_run
            if latest is None or latest.ended_at is None:
                continue
            ended.add_metric(which, latest.ended_at.timestamp())
            begun = latest.started_at or latest.ended_at
            lasted.add_metric(which, (latest.ended_at - begun).total_seconds())
            for each in RunOutcome:
                outcome.add_metric((*which, each), each is latest.outcome)
            good_at = runs.last_good_end(job.name, job.kind)
            if good_at is not None:
                good.add_metric(which, good_at.timestamp())
            for family, key in ((read, "read_bytes"), (stored, "stored_bytes")):
                value = runs.newest_result(job.name, job.kind, key)
                if isinstance(value, int):
                    family.add_metric(which, value)
        yield from (outcome, ended, good, lasted, read, stored, following, running, enabled)

    def _of_vms(self) -> Iterator[Metric]:
        age = _gauge("vm_point_age_seconds", "Age of the newest recovery point", "vm")
        count = _gauge("vm_points", "Recovery points", "vm")
        now = self._catalog.clock.now()
        vms = self._catalog.points.vms()
        for vm in vms[:VMS_MAX]:
            age.add_metric((vm.vm,), (now - vm.newest_at).total_seconds())
            count.add_metric((vm.vm,), vm.point_count)
        left_out = _gauge("vms_left_out", "VMs that are too many to be shown here")
        left_out.add_metric((), max(0, len(vms) - VMS_MAX))
        known = self._inventory.known()
        keys = {vm.vm_key for vm in vms}
        unprotected = _gauge("vms_unprotected", "Known VMs of all hosts without recovery point")
        unprotected.add_metric((), sum(vm.identity.key not in keys for vm in known))
        inventory = _gauge("vms_in_inventory", "Known VMs of all hosts, as last asked")
        inventory.add_metric((), len(known))
        yield from (age, count, left_out, unprotected, inventory)

    def _of_verifications(self) -> Iterator[Metric]:
        labels = ("vm", "place")
        passed = _gauge("vm_verification_passed", "1 if the newest verification passed", *labels)
        at = _gauge("vm_verification_timestamp_seconds", "When it was last verified", *labels)
        took = _gauge("vm_recovery_seconds", "Measured time to recover, at the last boot", *labels)
        rto = _gauge("vm_rto_seconds", "What the policy allows for recovery", *labels)
        rpo = _gauge("vm_rpo_seconds", "What the policy allows for the age of a point", "vm")
        rpos: dict[str, float] = {}
        for record in self._catalog.verifications.newest(limit=VMS_MAX):
            which = (record.vm, record.place or "not booted")
            passed.add_metric(which, record.verdict == "passed")
            at.add_metric(which, record.started_at.timestamp())
            for family, value in ((took, record.recovery_s), (rto, record.rto_s)):
                if value is not None:
                    family.add_metric(which, value)
            if record.rpo_s is not None:
                rpos[record.vm] = min(record.rpo_s, rpos.get(record.vm, record.rpo_s))
        for vm, seconds in rpos.items():
            rpo.add_metric((vm,), seconds)
        yield from (passed, at, took, rto, rpo)

    def _of_repository(self) -> Iterator[Metric]:
        totals = self._catalog.points.totals()
        growth = self._growth()
        figures: dict[str, tuple[str, float]] = {
            "repository_points": ("Recovery points", totals.point_count),
            "repository_vms": ("Names that recovery points are kept under", totals.vm_count),
            "repository_growth_bytes_per_day": ("Stored by backups a day", growth),
        }
        disk = self._disk()
        if disk is not None:
            figures |= {
                "repository_size_bytes": ("Size of its file system", disk.total_bytes),
                "repository_free_bytes": ("Free in its file system", disk.free_bytes),
            }
        stats = self._figures.known()
        if stats is not None:
            figures |= {
                "repository_stored_bytes": ("All packs", stats.stored_bytes),
                "repository_unique_bytes": ("Chunks, uncompressed", stats.unique_bytes),
                "repository_referenced_bytes": ("Of all points", stats.referenced_bytes),
                "repository_deduplication_ratio": ("Referenced / unique", stats.deduplication),
                "repository_compression_ratio": ("Unique / stored", stats.compression),
            }
        for name, (text, value) in figures.items():
            family = _gauge(name, text)
            family.add_metric((), value)
            yield family
        full = _gauge(
            "repository_full_in_seconds",
            "When it is full if backups go on storing as much and nothing is ever removed",
        )
        if growth > 0 and disk is not None:
            full.add_metric((), disk.free_bytes / growth * 86400)
        yield full

    def _disk(self) -> RepositoryDisk | None:
        """None: it is away. All other figures are asked for then more than ever."""
        try:
            return repository_disk(self._path)
        except StorageError as error:
            log.warning("repository does not answer", error=error)
            return None

    def _growth(self) -> float:
        today = self._catalog.clock.now().date()
        stored = self._catalog.points.stored_by_day(today - timedelta(days=_GROWTH_DAYS))
        if not stored:
            return 0.0
        days = max((today - min(stored)).days, 1)
        return sum(stored.values()) / days

    def _of_daemon(self) -> Iterator[Metric]:
        sessions = _gauge("recovery_sessions", "VMs that run from their backup", "state")
        counts = {"served": 0, "failed": 0}
        for session in self._recovery.sessions():
            counts["served" if session.served else "failed"] += 1
        for state, count in counts.items():
            sessions.add_metric((state,), count)
        runs = _gauge("runs_open", "Runs of jobs that have not ended", "state")
        states = [run.state for run in self._catalog.job_runs.open_runs()]
        for each in (RunState.WAITING, RunState.RUNNING):
            runs.add_metric((each,), states.count(each))
        told = _gauge("notifications", "Messages in the outbox of the last 30 days", "state")
        by_state = self._catalog.notifications.counts()
        for delivery in Delivery:
            told.add_metric((delivery,), by_state.get(delivery, 0))
        yield from (sessions, runs, told)


def _gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"holdfast_{name}", text, labels=labels)
