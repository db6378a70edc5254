"""Saved jobs and policies, changed: by the command line, the API and job files.

After every change `HOME/jobs-copy.toml` says what is saved, as a job file without passwords. A
daemon that finds a new, empty catalog beside it takes the jobs from there, so that a lost catalog
does not end the backups in silence; their hosts must be added again, and until then the runs fail
and say so. What the repository tells of earlier backups is taken from it (`rebuild_history`).

Thread model: any thread, any process of one machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from appliance.base.atomic import replace_file
from appliance.base.errors import UsageError
from appliance.base.ids import RunId
from appliance.base.log import EventLog
from appliance.base.secret import Secret
from appliance.catalog.catalog import Catalog
from appliance.catalog.errors import JobExistsError
from appliance.catalog.hosts import HostKind, HostRecord
from appliance.catalog.job import BackupJob, CbtAuditJob, Job, VerificationJob
from appliance.catalog.policy import Policy
from appliance.jobs.verification_job import check_verification_job
from appliance.repository.repository import Repository
from appliance.service.hosts import connect, login_of
from appliance.service.job_changes import (
    JobFileChanges,
    SavedState,
    compare,
)
from appliance.service.job_file import (
    PASSWORD_FILE,
    HostEntry,
    JobFile,
    host_entry,
    read_job_file,
    write_job_file,
)

log = EventLog(__name__)

_PASSWORD_LIMIT_BYTES = 4096
_COPY_HEAD = """\
# What is saved, written by Holdfast after every change. It is read only when the catalog is lost;
# `holdfast job export` prints the same.

"""


class JobBook:
    def __init__(self, catalog: Catalog, home: Path) -> None:
        self._catalog = catalog
        self._jobs = catalog.jobs
        self._copy = home / "jobs-copy.toml"

    # One at a time

    def save(self, policies: Sequence[Policy], jobs: Sequence[Job]) -> None:
        """As `Jobs.save`. Raises also UsageError: a job names a host that is not registered, or a
        probe that is none."""
        self._check_jobs(jobs, ())
        self._jobs.save(policies, jobs)
        self._write_copy()

    def create(self, policies: Sequence[Policy], jobs: Sequence[Job]) -> None:
        """As `save`, of new ones only. Raises also JobExistsError."""
        taken = {policy.name for policy in self._jobs.policies()}
        for policy in policies:
            if policy.name in taken:
                raise JobExistsError(f"there is a policy {policy.name!r} already")
        taken = {saved.name for saved in self._jobs.list()}
        for job in jobs:
            if job.name in taken:
                raise JobExistsError(f"there is a job {job.name!r} already")
        self.save(policies, jobs)

    def enable(self, name: str) -> None:
        self._jobs.enable(name)
        self._write_copy()

    def disable(self, name: str) -> None:
        self._jobs.disable(name)
        self._write_copy()

    def remove(self, name: str) -> None:
        """Remove the job, and its policy if that has its name and no other job goes by it."""
        policy = self._jobs.get(name).job.policy
        self._jobs.remove(name)
        used = {saved.job.policy for saved in self._jobs.list()}
        if policy == name and name not in used:
            self._jobs.remove_policy(name)
        self._write_copy()

    def remove_policy(self, name: str) -> None:
        """Raises PolicyNotFoundError, PolicyInUseError."""
        self._jobs.remove_policy(name)
        self._write_copy()

    # Files

    def as_file(self) -> JobFile:
        """All that is saved."""
        return JobFile(
            folder=Path(),
            hosts=tuple(map(host_entry, self._catalog.hosts.list())),
            policies=tuple(self._jobs.policies()),
            jobs=tuple(saved.job for saved in self._jobs.list()),
        )

    def changes(self, file: JobFile) -> JobFileChanges:
        """What `apply` would do; reads password files, asks no host, changes nothing.

        Raises: UsageError, PolicyNotFoundError: it could not be applied.
        """
        self._check_jobs(file.jobs, file.hosts)
        self._jobs.check(file.policies, file.jobs)
        known = {record.name: record for record in self._catalog.hosts.list()}
        new_passwords = []
        for entry in file.hosts:
            record = known.get(entry.name)
            if entry.password_file is not None:
                password = _read_password(file, entry)
                if record is not None and self._catalog.hosts.password(record) != password:
                    new_passwords.append(entry.name)
            elif record is None:
                raise UsageError(f"host.{entry.name}: a new host needs a password_file")
        saved = self.as_file()
        state = SavedState(
            hosts={entry.name: entry for entry in saved.hosts},
            policies={policy.name: policy for policy in saved.policies},
            jobs={job.name: job for job in saved.jobs},
        )
        return compare(file, state, new_passwords)

    def apply(self, file: JobFile) -> JobFileChanges:
        """Make it so, and say what was changed. Repeatable.

        Hosts come first, each after a login; then policies and jobs, all or none. Should a host
        fail, those before it stay changed and no policy or job is.

        Raises: as `changes`; as `hosts.connect`; HostExistsError.
        """
        changes = self.changes(file)
        changed = {entry.name for entry in changes.changed if entry.section == "host"}
        for entry in file.hosts:
            if entry.name in changed:
                self._put_host(file, entry)
        if any(entry.section != "host" for entry in changes.changed):
            self._jobs.save(file.policies, file.jobs)
        if changes.changed:
            self._write_copy()
        return changes

    # After a loss

    def restore_lost(self) -> int:
        """Take jobs from the copy if the catalog knows none and never ran one; return how many.

        Raises: UsageError: the copy cannot be read.
        """
        jobs = self._jobs
        if jobs.list() or jobs.policies() or self._catalog.job_runs.list(limit=1):
            return 0
        if not self._copy.exists():
            return 0
        file = read_job_file(self._copy)
        jobs.save(file.policies, file.jobs)
        for job in file.jobs:
            log.warning("job taken from the copy, the catalog was lost", job=job.name)
        return len(file.jobs)

    def _write_copy(self) -> None:
        head = (
            "# What is saved, written by Holdfast after every change. Not read while there is a\n"
        )
        head += "# catalog; `holdfast job export` prints the same.\n\n"
        try:
            replace_file(self._copy, (head + write_job_file(self.as_file())).encode())
        except OSError as error:  # the catalog has it; the copy is the second line
            log.error("copy of the jobs not written", path=self._copy, error=error.strerror)

    # Hosts

    def _check_jobs(self, jobs: Sequence[Job], new: Sequence[HostEntry]) -> None:
        known = {record.name for record in self._catalog.hosts.list()}
        known |= {entry.name for entry in new}
        for job in jobs:
            if isinstance(job, BackupJob | CbtAuditJob):
                missing = [name for name in job.select.hosts if name not in known]
                if missing:
                    raise UsageError(
                        f"job.{job.name}.select.hosts: no host {missing[0]!r} is registered"
                    )
            if isinstance(job, VerificationJob):
                check_verification_job(job)
                if job.host is not None and job.host not in known:
                    raise UsageError(f"job.{job.name}.host: no host {job.host!r} is registered")

    def _put_host(self, file: JobFile, entry: HostEntry) -> None:
        records = {record.name: record for record in self._catalog.hosts.list()}
        before = records.get(entry.name)
        if entry.password_file is not None:
            password = _read_password(file, entry)
        elif before is not None:
            password = self._catalog.hosts.password(before)
        else:
            raise UsageError(f"host.{entry.name}: a new host needs a password_file")
        address, port = entry.host_and_port
        settings = dict(before.settings) if before else {}
        if entry.type == "hyperv":
            settings.pop("nodes", None)  # the file may name fewer
            settings |= entry.login_settings
        if entry.password_file is not None:
            settings[PASSWORD_FILE] = str(_password_path(file, entry).absolute())
        record = HostRecord(
            name=entry.name,
            kind=HostKind(entry.type),
            address=address,
            port=port,
            user=entry.user,
            fingerprint=entry.fingerprint,
            server_id="not known yet",
            added_at=before.added_at if before else self._catalog.clock.now(),
            settings=settings,
        )
        with connect(login_of(record), password) as host:
            record = replace(record, server_id=host.about.server_id)
        if before is None:
            self._catalog.hosts.add(record, password)
        else:
            self._catalog.hosts.replace(record, password)


def rebuild_history(catalog: Catalog, repository: Repository) -> int:
    """Take what the repository tells of earlier backups into an empty catalog; return how many."""
    if not catalog.runs.empty():
        return 0
    manifests, _ = repository.points.readable()
    return catalog.runs.remember(
        (RunId(manifest.run_id), manifest.vm, manifest.created_at, manifest.committed_at)
        for manifest in manifests
    )


def _password_path(file: JobFile, entry: HostEntry) -> Path:
    return file.folder / (entry.password_file or "")


def _read_password(file: JobFile, entry: HostEntry) -> Secret:
    """The first line of its file. Raises UsageError, StorageError."""
    path = _password_path(file, entry)
    try:
        with path.open("rb") as stream:
            line = stream.readline(_PASSWORD_LIMIT_BYTES).rstrip(b"\r\n")
    except OSError as error:
        raise UsageError(f"host.{entry.name}.password_file: {path}: {error.strerror}") from error
    try:
        line.decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"host.{entry.name}.password_file: not UTF-8") from error
    if not line:
        raise UsageError(f"host.{entry.name}.password_file: {path}: the first line is empty")
    return Secret(line)
