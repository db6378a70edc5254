"""Waits for vSphere's asynchronous tasks, with a deadline, cancellation, and an eye on the VM's
question.

A task whose VM asks a question stays `running` for ever, so the question is read in the same call
as the task.
Invariants: only leaf properties are read; a connection that breaks meanwhile does not lose the
task: the server is asked again for `OUTAGE_S`. Raising never stops a task; only `cancelled` asks
the server to. Blocks the calling thread; any number of threads may wait.
Source: design notes section 0 (why not pyVim's WaitForTask); vSphere API reference, Task,
VirtualMachineQuestionInfo.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pyVmomi import vim

from vmware.errors import (
    CancelledError,
    DeadlineError,
    QuestionPendingError,
    RefusedError,
    TaskFailedError,
    UnreachableError,
    VsphereError,
)
from vmware.faults import translate
from vmware.properties import Wanted, fetch
from vmware.session import Session

OUTAGE_S = 120.0  # how long the server may be away while a task runs
CANCEL_GRACE_S = 60.0  # how long a cancelled task may take to end

_FIRST_PAUSE_S = 0.02
_LONGEST_PAUSE_S = 1.0
_TASK_PATHS = (
    "info.state",
    "info.error",
    "info.result",
    "info.progress",
    "info.cancelable",
    "info.entity",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One answer that a question allows."""

    key: str
    label: str
    summary: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a VM wants to know before it goes on."""

    vm_moref: str
    id: str
    text: str
    message_ids: tuple[str, ...]  # such as `msg.uuid.altered`
    choices: tuple[Choice, ...]
    default_key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _State:
    state: str  # queued, running, success, error
    error: Any
    result: Any
    progress: int | None
    cancelable: bool
    vm: Any  # the VM it works on, or None
    question: Question | None


def wait_for_task(
    session: Session,
    task: Any,
    *,
    what: str,
    deadline_s: float,
    cancelled: Callable[[], bool] = lambda: False,
    on_progress: Callable[[int], None] | None = None,
    on_question: Callable[[Question], str | None] | None = None,
) -> Any:
    """The result of `task` (a vim.Task) once it succeeded.

    Args:
        what: for messages: “create the snapshot of web-1”.
        deadline_s: from now.
        cancelled: asked at least once a second. A task that succeeds although it was to be
            cancelled returns its result all the same, because what it made exists.
        on_progress: gets percent, each value once.
        on_question: gets a question that blocks the VM; returns the key of the choice to answer
            with, or None to give up. Without it every question gives up.

    Raises:
        TaskFailedError, or the kind that fits its fault (BusyError, QuiesceError, …): the task
        failed.
        QuestionPendingError: the VM waits for an answer; the task goes on waiting too.
        DeadlineError: not done in time; the task may go on.
        CancelledError: cancelled by us (then it has ended, or could not be cancelled and may go on)
        or in vSphere.
        UnreachableError: the server was away for longer than `OUTAGE_S`.
    """
    wait = _Wait(session, task, what, deadline_s)
    pause_s, shown = _FIRST_PAUSE_S, -1
    while True:
        now = wait.look()
        if now is not None:
            if now.state == "success":
                return now.result
            if now.state == "error":
                raise wait.failure(now.error) from now.error
            if on_progress and now.progress is not None and now.progress != shown:
                shown = now.progress
                on_progress(shown)
            if now.question is not None:
                wait.answer(now.question, on_question)
            if cancelled():
                wait.cancel(now)
        wait.check_time()
        time.sleep(pause_s)
        pause_s = min(pause_s * 1.5, _LONGEST_PAUSE_S)


class _Wait:
    """One wait and what it has done so far. One thread."""

    def __init__(self, session: Session, task: Any, what: str, deadline_s: float) -> None:
        self._session = session
        self._task = task
        self._what = what
        self._deadline_s = deadline_s
        self._ends = self._reached = time.monotonic()
        self._ends += deadline_s
        self._gives_up: float | None = None  # after it was to be cancelled
        self._answered: set[str] = set()
        self._vm: Any = None

    def look(self) -> _State | None:
        """As it is now; None while the server is away."""
        wanted = [Wanted(kind=vim.Task, paths=_TASK_PATHS)]
        objects = [self._task]
        if self._vm is not None:
            objects.append(self._vm)
            wanted.append(Wanted(kind=vim.VirtualMachine, paths=("runtime.question",)))
        try:
            found = fetch(self._session, self._what, objects, wanted)
        except UnreachableError:
            if time.monotonic() - self._reached > OUTAGE_S:
                raise
            return None
        self._reached = time.monotonic()
        values = {path: value for item in found for path, value in item.values.items()}
        asked = values.get("runtime.question")
        entity = values.get("info.entity")
        if isinstance(entity, vim.VirtualMachine):
            self._vm = entity
        return _State(
            state=str(values.get("info.state", "")),
            error=values.get("info.error"),
            result=values.get("info.result"),
            progress=values.get("info.progress"),
            cancelable=bool(values.get("info.cancelable")),
            vm=self._vm,
            question=_question(self._vm, asked) if asked is not None else None,
        )

    def failure(self, fault: Any) -> VsphereError:
        if fault is None:
            return TaskFailedError(f"{self._what}: the task failed without saying why")
        error = translate(fault, self._what)
        if type(error) is RefusedError:
            return TaskFailedError(str(error), fault=error.fault)
        return error

    def answer(self, question: Question, choose: Callable[[Question], str | None] | None) -> None:
        if question.id in self._answered:  # still shown for a moment
            return
        key = choose(question) if choose else None
        if key is None:
            raise QuestionPendingError(f"{self._what}: the VM asks: {question.text}")
        self._answered.add(question.id)
        vm = self._session.object(vim.VirtualMachine, question.vm_moref)
        self._session.call(f"answer “{question.text}”", vm.AnswerVM, question.id, key)

    def cancel(self, now: _State) -> None:
        if self._gives_up is not None:
            return
        if not now.cancelable:
            raise CancelledError(f"{self._what}: cancelled; the task cannot be, and goes on")
        self._gives_up = time.monotonic() + CANCEL_GRACE_S
        with suppress(VsphereError):  # it may just have ended: the next look tells
            self._session.call(f"cancel: {self._what}", self._task.CancelTask)

    def check_time(self) -> None:
        now = time.monotonic()
        if self._gives_up is not None and now > self._gives_up:
            raise CancelledError(f"{self._what}: cancelled, but the task does not end")
        if now > self._ends:
            raise DeadlineError(f"{self._what}: not done within {self._deadline_s:.0f} s")


def _question(vm: Any, asked: Any) -> Question:
    choice = asked.choice
    keys = [str(item.key) for item in choice.choiceInfo]
    default = choice.defaultIndex
    return Question(
        vm_moref=vm._GetMoId(),
        id=asked.id,
        text=asked.text,
        message_ids=tuple(message.id for message in asked.message or ()),
        choices=tuple(
            Choice(key=str(item.key), label=item.label or "", summary=item.summary or "")
            for item in choice.choiceInfo
        ),
        default_key=keys[default] if default is not None and 0 <= default < len(keys) else "",
    )
