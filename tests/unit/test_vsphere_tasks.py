"""Waiting for tasks: results, failures, questions, cancellation, outages; against a fake server."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from pyVmomi import vim, vmodl

from tests.support.fake_session import FakeSession
from vmware import tasks
from vmware.errors import (
    BusyError,
    CancelledError,
    DeadlineError,
    QuestionPendingError,
    TaskFailedError,
    UnreachableError,
)
from vmware.tasks import Question, wait_for_task

QUESTION = SimpleNamespace(
    id="7",
    text="Did you move it, or copy it?",
    message=[SimpleNamespace(id="msg.uuid.altered")],
    choice=SimpleNamespace(
        choiceInfo=[
            SimpleNamespace(key="1", label="Moved", summary="I moved it"),
            SimpleNamespace(key="2", label="Copied", summary=None),
        ],
        defaultIndex=1,
    ),
)


class Server(FakeSession):
    """Shows the task in a new state each time it is looked at; the last one stays."""

    def __init__(self, *states: dict[str, Any] | Callable[[], dict[str, Any]]) -> None:
        super().__init__(443, "00" * 32)
        self._states = list(states)
        self.task = self.object(vim.Task, "task-1")
        self.vm = self.object(vim.VirtualMachine, "vm-1")
        self.answers: list[tuple[str, ...]] = []
        self.methods["AnswerVM"] = lambda *args: self.answers.append(args)
        self.methods["CancelTask"] = lambda _moref: self.answers.append(("cancel",))

    def _page(self, filters: list[Any]) -> Any:
        state = self._states[0] if len(self._states) == 1 else self._states.pop(0)
        values = state() if callable(state) else state
        task = {f"info.{name}": value for name, value in values.items() if name != "question"}
        found = [SimpleNamespace(obj=self.task, propSet=_properties(task), missingSet=[])]
        if len(filters[0].objectSet) > 1:
            asked = {"runtime.question": values["question"]} if "question" in values else {}
            found.append(SimpleNamespace(obj=self.vm, propSet=_properties(asked), missingSet=[]))
        return SimpleNamespace(objects=found, token=None)

    def wait(self, **options: Any) -> Any:
        named = {"what": "do it", "deadline_s": 30.0} | options
        return wait_for_task(self, self.task, **named)  # type: ignore[arg-type]


def _properties(values: dict[str, Any]) -> list[Any]:
    return [SimpleNamespace(name=name, val=value) for name, value in values.items()]


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks.time, "sleep", lambda _seconds: None)


def test_the_result_comes_when_the_task_succeeds() -> None:
    """Progress is told once per value on the way."""
    shown: list[int] = []
    server = Server(
        {"state": "queued"},
        {"state": "running", "progress": 10},
        {"state": "running", "progress": 10},
        {"state": "running", "progress": 80},
        {"state": "success", "result": "snapshot-1"},
    )
    assert server.wait(on_progress=shown.append) == "snapshot-1"
    assert shown == [10, 80]


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (vim.fault.FileLocked(file="[ds] x"), BusyError),
        (vmodl.fault.SystemError(reason="x"), TaskFailedError),
        (None, TaskFailedError),
    ],
)
def test_a_failed_task_raises_its_fault(fault: Any, kind: type) -> None:
    """Kinds that callers react to keep their kind; all others are a failed task."""
    with pytest.raises(kind) as caught:
        Server({"state": "error", "error": fault}).wait()
    assert type(caught.value) is kind
    assert "do it" in str(caught.value)


def test_a_question_without_anybody_to_answer_gives_up() -> None:
    """A task that waits for an answer would run for ever."""
    running = {"state": "running"}
    server = Server(running)
    running["entity"] = server.vm
    running["question"] = QUESTION
    with pytest.raises(QuestionPendingError, match="move it, or copy"):
        server.wait()


def test_a_question_is_answered_once_by_key() -> None:
    """The handler sees ids and choices; the question may be shown a while longer."""
    seen: list[Question] = []

    def choose(question: Question) -> str:
        seen.append(question)
        return question.choices[0].key

    asking = {"state": "running", "question": QUESTION}
    server = Server(asking, asking, asking, asking, {"state": "success"})
    asking["entity"] = server.vm
    assert server.wait(on_question=choose) is None
    assert server.answers == [("vm-1", "7", "1")]
    (question,) = seen
    assert question.message_ids == ("msg.uuid.altered",)
    assert question.default_key == "2"


def test_a_cancelled_task_is_cancelled_on_the_server() -> None:
    """CancelTask is asked for once; the task's own end decides."""
    server = Server(
        {"state": "running", "cancelable": True},
        {"state": "running", "cancelable": True},
        {"state": "error", "error": vmodl.fault.RequestCanceled()},
    )
    with pytest.raises(CancelledError):
        server.wait(cancelled=lambda: True)
    assert server.answers == [("cancel",)]


def test_a_task_that_succeeds_in_spite_of_cancellation_gives_its_result() -> None:
    """What it made exists, so the caller must learn its name."""
    server = Server(
        {"state": "running", "cancelable": True}, {"state": "success", "result": "snapshot-2"}
    )
    assert server.wait(cancelled=lambda: True) == "snapshot-2"


def test_a_task_that_cannot_be_cancelled_is_left_alone() -> None:
    """The wait ends, and says that the task does not."""
    server = Server({"state": "running", "cancelable": False})
    with pytest.raises(CancelledError, match="goes on"):
        server.wait(cancelled=lambda: True)
    assert server.answers == []


def test_a_task_that_does_not_end_after_cancelling_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Cancelling a run never takes longer than the grace."""
    monkeypatch.setattr(tasks, "CANCEL_GRACE_S", 0.0)
    server = Server({"state": "running", "cancelable": True})
    with pytest.raises(CancelledError, match="does not end"):
        server.wait(cancelled=lambda: True)


def test_the_deadline_ends_the_wait() -> None:
    """The error says that the task may go on."""
    with pytest.raises(DeadlineError):
        Server({"state": "running"}).wait(deadline_s=0.0)


def test_an_outage_does_not_lose_the_task() -> None:
    """The server is away for a while; the task went on meanwhile."""

    def away() -> dict[str, Any]:
        raise ConnectionResetError(104, "reset")

    server = Server({"state": "running"}, away, away, {"state": "success", "result": 5})
    assert server.wait() == 5


def test_a_server_that_stays_away_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the longest outage the caller learns the truth."""
    monkeypatch.setattr(tasks, "OUTAGE_S", 0.0)

    def away() -> dict[str, Any]:
        raise ConnectionResetError(104, "reset")

    with pytest.raises(UnreachableError):
        Server(away).wait()
