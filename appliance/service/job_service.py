"""Jobs and runs of the daemon as one thing: what the local socket, the API and the UI ask.

`start` takes what a lost catalog can be made from, then begins to schedule; `stop` begins nothing
more, interrupts what goes on and waits for it. It is started after the recovery sessions are
served, and stopped before they are.

Thread model: any thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from appliance.base.errors import ApplianceError, UsageError
from appliance.base.ids import RunId
from appliance.base.log import EventLog
from appliance.base.run_context import CancelToken
from appliance.catalog.catalog import Catalog
from appliance.catalog.errors import CatalogError
from appliance.catalog.job import RunKind
from appliance.catalog.job_runs import JobRun, RunState
from appliance.catalog.jobs import SavedJob
from appliance.catalog.runs import RunRecord
from appliance.jobs.backup_limits import BackupLimits, LimitPolicy
from appliance.jobs.certificate_store import CertificateStore
from appliance.jobs.certified_run import remember_proofs
from appliance.jobs.due import next_run
from appliance.jobs.engine import Engine, RunListener, Runner
from appliance.jobs.live_run import LiveSnapshot
from appliance.jobs.recovery_room import SessionServer
from appliance.jobs.runners.backup_runner import BackupRunner
from appliance.jobs.runners.cbt_audit_runner import CbtAuditRunner
from appliance.jobs.runners.retention_runner import RetentionRunner
from appliance.jobs.runners.site import OpenedSources, RunRoom
from appliance.jobs.runners.upkeep_runners import CheckRunner, GcRunner
from appliance.jobs.runners.verification_runner import VerificationRoom, VerificationRunner
from appliance.jobs.scheduler import Scheduler, run_now
from appliance.jobs.vm_backup import BackupRoom
from appliance.repository.repository import Repository
from appliance.service.hypervisor_proof import HypervisorOpener
from appliance.service.job_book import JobBook, rebuild_history
from appliance.service.point_book import PointBook
from appliance.service.protection import kept_names
from appliance.service.selection_preview import SelectionPreview
from appliance.service.vm_sources import clean_up, open_sources
from appliance.sources.contract import Orphan, VmSource
from appliance.sources.vm_identity import PointNames
from appliance.sources.vsphere_transports import SourceTools

log = EventLog(__name__)

_MOST_VM_RUNS = 50_000
_CLEANING_WAIT_S = 900.0


class RunEndedError(CatalogError):
    """The run has ended already; there is nothing to cancel."""

    code = "run.ended"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStatus:
    saved: SavedJob
    next_run_at: datetime | None  # None: by hand only, or disabled
    open_run: JobRun | None
    latest_run: JobRun | None  # that has ended


@dataclass(frozen=True, slots=True, kw_only=True)
class RunView:
    run: JobRun
    live: LiveSnapshot | None  # while it goes on here
    vm_runs: tuple[RunRecord, ...]  # the attempts for single VMs, without results


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonSite:
    """What the runners see of the daemon (`jobs.runners.site.Site`)."""

    catalog: Catalog
    repository: Repository
    tools: SourceTools
    book: PointBook
    session_points: Callable[[], frozenset[str]]
    goes_on: Callable[[RunKind], bool]

    def open_sources(self, hosts: Sequence[str]) -> AbstractContextManager[OpenedSources]:
        return self._opened(hosts)

    @contextmanager
    def _opened(self, hosts: Sequence[str]) -> Iterator[OpenedSources]:
        with open_sources(self.catalog, hosts, self.tools) as opened:
            yield opened

    def clean_up(self, sources: Sequence[VmSource], cancel: CancelToken) -> list[Orphan]:
        self.catalog.runs.close_interrupted()
        return clean_up(self.catalog, sources, wait_s=_CLEANING_WAIT_S, cancel=cancel)

    def point_names(self) -> PointNames:
        """By the catalog's list, after what other processes did was taken in."""
        self.book.refresh()
        return kept_names(self.catalog.points.vms())

    def points_in_use(self) -> frozenset[str]:
        return self.session_points()

    def backup_goes_on(self) -> bool:
        return self.goes_on(RunKind.BACKUP)


def job_status(catalog: Catalog, saved: SavedJob) -> JobStatus:
    """How a job stands; needs no daemon."""
    history = catalog.job_runs.history(saved.name, saved.job.kind)
    return JobStatus(
        saved=saved,
        next_run_at=next_run(saved, history, catalog.clock.now()),
        open_run=history.open_run,
        latest_run=history.latest,
    )


def run_view(catalog: Catalog, run_id: str, live: LiveSnapshot | None = None) -> RunView:
    """What is on record of a run; needs no daemon. Raises RunNotFoundError."""
    run = catalog.job_runs.get(run_id)
    vm_runs = catalog.runs.list(job_run=RunId(run_id), limit=_MOST_VM_RUNS)
    return RunView(run=run, live=live, vm_runs=tuple(vm_runs))


class JobService:
    """`session_points`: the points that recovery sessions use. `more_runners`: of further kinds.
    `recovery`: who shows the sessions of verifications to hosts; None: the daemon, over its socket.
    """

    def __init__(
        self,
        catalog: Catalog,
        repository: Repository,
        home: Path,
        session_points: Callable[[], frozenset[str]],
        *,
        tools: SourceTools | None = None,
        limits: LimitPolicy | None = None,
        listeners: Sequence[RunListener] = (),
        more_runners: Callable[[RunRoom], dict[RunKind, Runner]] = lambda room: {},
        recovery: SessionServer | None = None,
    ) -> None:
        self._catalog = catalog
        self._home = home
        self.certificates = CertificateStore(home, clock=catalog.clock)
        self._repository = repository
        self.book = JobBook(catalog, home)
        self.points = PointBook(catalog, repository)
        site = DaemonSite(
            catalog=catalog,
            repository=repository,
            tools=tools or SourceTools(),
            book=self.points,
            session_points=session_points,
            goes_on=lambda kind: bool(self.engine.active(kind)),
        )
        self.preview = SelectionPreview(catalog.clock, site.open_sources, site.point_names)
        backups = BackupRoom(
            repository=repository,
            runs=catalog.runs,
            run_locks=catalog.run_locks,
            limits=BackupLimits(limits or LimitPolicy()),
            state_folder=home,
        )
        room = RunRoom(site=site, backups=backups, jobs=catalog.jobs)
        self._hypervisors = HypervisorOpener(home, catalog, repository, recovery)
        runners: dict[RunKind, Runner] = {
            RunKind.BACKUP: BackupRunner(room, catalog.clock),
            RunKind.CBT_AUDIT: CbtAuditRunner(room, catalog.clock),
            RunKind.RETENTION: RetentionRunner(room, catalog.job_runs),
            RunKind.GC: GcRunner(repository),
            RunKind.CHECK: CheckRunner(repository),
            RunKind.VERIFICATION: VerificationRunner(
                VerificationRoom(
                    home=home,
                    catalog=catalog,
                    repository=repository,
                    open_hypervisor=self._hypervisors.open,
                )
            ),
        }
        self.engine = Engine(
            catalog.job_runs,
            catalog.run_locks,
            runners | more_runners(room),
            catalog.clock,
            listeners,
        )
        self.scheduler = Scheduler(catalog.jobs, catalog.job_runs, self.engine, catalog.clock)

    def start(self) -> None:
        """Raises: CatalogError, StorageError."""
        self.points.start()
        try:
            self.book.restore_lost()
        except UsageError as error:
            log.error("the copy of the jobs cannot be read", error=error)
        rebuild_history(self._catalog, self._repository)
        remember_proofs(self._home, self._catalog)
        self._catalog.runs.close_interrupted()
        self.scheduler.start()

    def stop(self) -> None:
        """Idempotent."""
        self.scheduler.stop()
        self.points.stop()

    def discard_debris(self) -> None:
        """Remove what killed verifications left on hypervisors. Raises StorageError."""
        self._hypervisors.discard_debris()

    # Asked by the local socket, the API and the UI

    def saved(self) -> list[SavedJob]:
        return self._catalog.jobs.list()

    def jobs(self) -> list[JobStatus]:
        return [job_status(self._catalog, saved) for saved in self._catalog.jobs.list()]

    def job(self, name: str) -> JobStatus:
        """Raises JobNotFoundError."""
        return job_status(self._catalog, self._catalog.jobs.get(name))

    def run_now(self, name: str) -> JobRun:
        """Raises: JobNotFoundError; JobRunningError."""
        return run_now(self._catalog.jobs, self._catalog.job_runs, name, self.scheduler.wake)

    def look(self) -> None:
        """Something was saved in another process: look now."""
        self.scheduler.wake()

    def runs(
        self, *, job: str | None = None, before: int | None = None, limit: int = 100
    ) -> list[JobRun]:
        """As `JobRuns.list`."""
        return self._catalog.job_runs.list(job=job, before=before, limit=limit)

    def run(self, run_id: str) -> RunView:
        """Raises RunNotFoundError."""
        return run_view(self._catalog, run_id, self.engine.live(run_id))

    def live(self) -> list[LiveSnapshot]:
        """All runs that go on, as they are now."""
        found = [self.engine.live(order.run.run_id) for order in self.engine.active()]
        return [snapshot for snapshot in found if snapshot is not None]

    def cancel(self, run_id: str) -> None:
        """Ask it to end; one that waits ends at once. Raises: RunNotFoundError, RunEndedError."""
        run = self._catalog.job_runs.get(run_id)
        if self._catalog.job_runs.cancel_waiting(run.run_id) or self.engine.cancel(run_id):
            return
        if self._catalog.job_runs.get(run_id).state is RunState.ENDED:
            raise RunEndedError(f"run {run_id} has ended")
        raise ApplianceError(f"run {run_id} goes on in another process")
