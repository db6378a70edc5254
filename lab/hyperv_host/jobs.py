"""Jobs of the management service: started, asked about, gone some minutes after their end.

A job runs on a thread of its own. Thread model: any thread; `close` stops and joins them all.
Source: design notes on Hyper-V, section 3 (Msvm_ConcreteJob).
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum

from lab.esx.errors import HostError
from lab.hyperv_host.errors import FAILED, HypervError

log = logging.getLogger(__name__)

_KEPT_S = 300.0


class JobState(IntEnum):
    RUNNING = 4
    COMPLETED = 7
    EXCEPTION = 10


@dataclass(slots=True)
class Job:
    job_id: str
    description: str
    state: JobState = JobState.RUNNING
    percent: int = 0
    error_code: int = 0
    error: str = ""
    checkpoints: list[str] = field(default_factory=list)
    reference_points: list[str] = field(default_factory=list)
    ended_at: float | None = None


class Jobs:
    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self.stopping = threading.Event()

    def start(self, description: str, work: Callable[[Job], None]) -> Job:
        job = Job(str(uuid.uuid4()).upper(), description)
        thread = threading.Thread(target=self._run, args=(job, work), name="lab-hv-job")
        with self._lock:
            self._jobs[job.job_id] = job
            self._threads = [one for one in self._threads if one.is_alive()]
            self._threads.append(thread)
            thread.start()
        return job

    def find(self, job_id: str) -> Job | None:
        with self._lock:
            job = self._jobs.get(job_id)
            if job and job.ended_at is not None and time.monotonic() - job.ended_at > _KEPT_S:
                del self._jobs[job_id]
                return None
        return job

    def close(self) -> None:
        self.stopping.set()
        for thread in list(self._threads):
            thread.join()

    def _run(self, job: Job, work: Callable[[Job], None]) -> None:
        try:
            work(job)
        except (HypervError, HostError) as error:
            job.error = str(error)
            job.error_code = getattr(error, "wmi_return", FAILED)
            job.state = JobState.EXCEPTION
        except Exception as error:
            log.exception("a job of the practice host failed: %s", job.description)
            job.error, job.error_code = str(error) or type(error).__name__, FAILED
            job.state = JobState.EXCEPTION
        else:
            job.percent, job.state = 100, JobState.COMPLETED
        job.ended_at = time.monotonic()
