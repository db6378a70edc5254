"""What verifications of jobs keep beside their certificates: screenshots, logs, reports.

    HOME/verify/<run id>/…

A certificate holds the hashes of its evidence and stays for ever; the evidence goes after as many
days as the policy of its job says (`evidence_days`). What is of no job, or of a run that the
history has forgotten, goes by the policy that keeps evidence longest.
Thread model: any thread; removing twice is removing once.
"""

from __future__ import annotations

import os
import shutil
from datetime import datetime, timedelta
from pathlib import Path

from appliance.base.errors import StorageError
from appliance.catalog.catalog import Catalog
from appliance.catalog.errors import RunNotFoundError
from appliance.catalog.job import RunKind


def remove_old_evidence(catalog: Catalog, folder: Path, now: datetime) -> int:
    """Remove the folders of runs that ended long ago; return how many. Raises StorageError."""
    days = {
        saved.name: saved.policy.evidence_days
        for saved in catalog.jobs.list()
        if saved.job.kind is RunKind.VERIFICATION
    }
    if not days:
        return 0
    removed = 0
    try:
        for entry in os.scandir(folder):
            if not entry.is_dir(follow_symlinks=False):
                continue
            age = now - datetime.fromtimestamp(entry.stat().st_mtime, now.tzinfo)
            if age > timedelta(days=min(days.values())) and age > _kept(catalog, entry.name, days):
                shutil.rmtree(entry.path)
                removed += 1
    except FileNotFoundError:
        return removed
    except OSError as error:
        raise StorageError(f"{folder}: {os.strerror(error.errno or 0)}") from error
    return removed


def _kept(catalog: Catalog, run_id: str, days: dict[str, int]) -> timedelta:
    longest = max(days.values())
    try:
        job = catalog.job_runs.get(run_id).job
    except RunNotFoundError:
        return timedelta(days=longest)
    return timedelta(days=days.get(job, longest))
