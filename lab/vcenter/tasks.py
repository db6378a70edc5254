"""Tasks: work that goes on after its method has answered.

Each task runs on a thread of its own, so that one that waits for an answered question holds up
no other. `TaskTable.close` cancels and joins them all. A finished task is kept until
`KEPT_TASKS` newer ones have finished; then its reference names nothing, as in vCenter.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pyVmomi import vim, vmodl

from lab.vcenter.managed_object import LabObject, ManagedEntity, method

if TYPE_CHECKING:
    from lab.vcenter.call import Call
    from lab.vcenter.lab_vcenter import LabVcenter

log = logging.getLogger(__name__)

KEPT_TASKS = 1000
_RECENT_PER_ENTITY = 10
_RECENT_TOTAL = 100


class TaskControl:
    """What the work of a task sees of its task."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self._cancelled = threading.Event()

    @property
    def cancelled(self) -> bool:
        return self._cancelled.is_set()

    def cancel(self) -> None:
        self._cancelled.set()

    def wait_cancelled(self, timeout_s: float) -> bool:
        return self._cancelled.wait(timeout_s)

    def raise_if_cancelled(self) -> None:
        if self.cancelled:
            raise vmodl.fault.RequestCanceled(msg="The task was canceled by a user.")

    def progress(self, percent: int) -> None:
        self.task.update("info.progress", max(0, min(100, int(percent))))


class Task(LabObject):
    vim_type = vim.Task
    moid_prefix = "task"

    def __init__(
        self,
        vcenter: LabVcenter,
        entity: ManagedEntity,
        *,
        description_id: str,
        user: str,
        cancelable: bool,
    ) -> None:
        super().__init__(vcenter)
        self.entity = entity
        self.control = TaskControl(self)
        self.finished = threading.Event()
        now = datetime.now(UTC)
        self.set(
            info=vim.TaskInfo(
                key=self.moid,
                task=self.ref,
                descriptionId=description_id,
                entity=entity.ref,
                entityName=entity.name,
                state=vim.TaskInfo.State.running,
                cancelled=False,
                cancelable=cancelable,
                reason=vim.TaskReasonUser(userName=user),
                queueTime=now,
                startTime=now,
                eventChainId=int(self.moid.rpartition("-")[2]),
            )
        )

    def guarded_by(self) -> LabObject:
        return self.entity if self.entity.registered else self.vcenter.root_folder

    @method("CancelTask", privilege=None)
    def cancel(self, call: Call) -> None:
        info = self.get("info")
        if info.reason.userName != call.authenticated().user:
            call.require("Global.CancelTask", self)
        if not info.cancelable:
            raise vmodl.fault.NotSupported(msg="The task cannot be canceled.")
        if self.finished.is_set():
            raise vim.fault.InvalidState(msg="The task has already ended.")
        self.update("info.cancelled", True)
        self.control.cancel()

    def run(self, work: Callable[[TaskControl], Any]) -> None:
        """Run the work to its end and record how it ended."""
        try:
            result = work(self.control)
        except vmodl.MethodFault as fault:
            self._end("error", error=fault)
        except Exception as error:
            log.exception("task %s failed", self.moid)
            reason = f"{type(error).__name__}: {error}"
            self._end("error", error=vmodl.fault.SystemError(msg=reason, reason=reason))
        else:
            self._end("success", result=result, progress=None)

    def _end(self, state: str, **fields: Any) -> None:
        with self.vcenter.registry.lock:
            for name, value in {
                **fields,
                "completeTime": datetime.now(UTC),
                "state": state,
            }.items():
                self.update(f"info.{name}", value)
            self.finished.set()
        self.entity.touch()


class TaskTable:
    def __init__(self, vcenter: LabVcenter) -> None:
        self._vcenter = vcenter
        self._lock = threading.Lock()
        self._kept: deque[Task] = deque()
        self._threads: dict[str, threading.Thread] = {}
        self._closed = False

    def start(
        self,
        entity: ManagedEntity,
        work: Callable[[TaskControl], Any],
        *,
        description_id: str,
        user: str,
        cancelable: bool = False,
    ) -> Task:
        task = Task(
            self._vcenter, entity, description_id=description_id, user=user, cancelable=cancelable
        )
        thread = threading.Thread(target=self._run, args=(task, work), name=f"lab-{task.moid}")
        with self._lock:
            if self._closed:
                task.unregister()
                raise vim.fault.InvalidState(msg="The server is shutting down.")
            self._kept.append(task)
            self._threads[task.moid] = thread
            thread.start()
        entity.touch()
        self._vcenter.events.post(
            vim.event.TaskEvent,
            f"Task: {description_id}",
            user=user,
            entity=entity,
            extra={"info": task.get("info")},
        )
        self._forget_old()
        return task

    def _run(self, task: Task, work: Callable[[TaskControl], Any]) -> None:
        try:
            task.run(work)
        finally:
            with self._lock:
                self._threads.pop(task.moid, None)

    def _forget_old(self) -> None:
        with self._lock:
            old = []
            while len(self._kept) > KEPT_TASKS and self._kept[0].finished.is_set():
                old.append(self._kept.popleft())
        for task in old:
            task.unregister()

    def recent(self) -> list[Any]:
        with self._lock:
            return [task.ref for task in list(self._kept)[-_RECENT_TOTAL:]]

    def recent_of(self, entity: ManagedEntity) -> list[Any]:
        with self._lock:
            mine = [task.ref for task in self._kept if task.entity is entity]
        return mine[-_RECENT_PER_ENTITY:]

    def running(self) -> list[Task]:
        with self._lock:
            return [task for task in self._kept if not task.finished.is_set()]

    def close(self) -> None:
        """Cancel what runs and wait for its end. Idempotent."""
        with self._lock:
            self._closed = True
            threads = list(self._threads.values())
            for task in self._kept:
                task.control.cancel()
        for thread in threads:
            thread.join()
