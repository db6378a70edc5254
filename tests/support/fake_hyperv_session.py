"""A `HostSession` without a host: scripts are answered by functions, in this process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from hyperv.envelope import AnswerT
from hyperv.errors import HypervError
from hyperv.host_session import TRIES, HostSession
from hyperv.patience import Patience

Handler = Callable[[Mapping[str, Any]], Mapping[str, Any] | HypervError]


class FakeHypervSession(HostSession):
    """A handler returns the value, or the error that the call is to raise."""

    def __init__(self, handlers: Mapping[str, Handler]) -> None:
        self.handlers = dict(handlers)
        self.calls: list[tuple[str, Mapping[str, Any]]] = []

    @property
    def address(self) -> str:
        return "hv1"

    def call(
        self,
        name: str,
        parameters: Mapping[str, Any],
        kind: type[AnswerT],
        *,
        deadline_s: float = 0.0,
        patience: Patience | None = None,
        tries: int = TRIES,
    ) -> AnswerT:
        self.calls.append((name, parameters))
        found = self.handlers[name](parameters)
        if isinstance(found, HypervError):
            raise found
        return kind.model_validate(found)

    def named(self, name: str) -> list[Mapping[str, Any]]:
        """The parameters of the calls of one script."""
        return [parameters for called, parameters in self.calls if called == name]


def quick_patience() -> Patience:
    """Its clock goes on by what is waited for, and nothing is."""
    now = [0.0]

    def wait(seconds: float) -> None:
        now[0] += seconds

    return Patience(wait=wait, clock_s=lambda: now[0])
