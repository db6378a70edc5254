"""What every section of the bench gets, and how programs alternate within a run."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tests.perf.images import ImageSet, image_set
from tests.perf.programs import NotMeasuredError, sync
from tests.perf.table import Missing, Samples, Value

T = TypeVar("T")

# One figure per name: a contestant may report several of one run (seconds, stored bytes).
Figures = Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    work: Path
    rounds: int
    quick: bool
    seed: int

    def images(self) -> ImageSet:
        return image_set()

    def random(self, name: str) -> random.Random:
        """The stream of random numbers of one part, the same in every run with this seed."""
        return random.Random(f"{self.seed} {name}")

    @contextmanager
    def folder(self, name: str) -> Iterator[Path]:
        """A folder for the block; removed at its end."""
        with new_folder(self.work / name) as path:
            yield path


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    path.mkdir()
    try:
        yield path
    finally:
        shutil.rmtree(path)


def prepared(make: Callable[[], T]) -> Callable[[], T]:
    """Make something now; the returned function gives it, or raises why it could not be made.

    So one contestant whose preparation fails is one reason in the table, not the end of a section.
    """
    try:
        made = make()
    except NotMeasuredError as error:
        reason = str(error)

        def missing() -> T:
            raise NotMeasuredError(reason)

        return missing
    return lambda: made


class Results:
    """Samples by contestant and figure; a contestant that failed has a reason instead."""

    def __init__(self) -> None:
        self._samples: dict[tuple[str, str], list[float]] = {}
        self._failures: dict[str, str] = {}

    def add(self, contestant: str, figures: Figures) -> None:
        for figure, value in figures.items():
            self._samples.setdefault((contestant, figure), []).append(value)

    def fail(self, contestant: str, reason: str) -> None:
        self._failures[contestant] = reason

    def failed(self, contestant: str) -> bool:
        return contestant in self._failures

    def value(self, contestant: str, figure: str) -> Value:
        if contestant in self._failures:
            return Missing(reason=self._failures[contestant])
        samples = self._samples.get((contestant, figure))
        if not samples:
            return Missing(reason=f"no figure {figure!r}")
        return Samples(values=tuple(samples))


def alternate(rounds: int, contestants: Mapping[str, Callable[[int], Figures]]) -> Results:
    """Run each contestant once per round, in an order that rotates, with a sync before each.

    The first failure takes a contestant out of the later rounds: half a series is no median.
    """
    results = Results()
    names = list(contestants)
    for number in range(rounds):
        turn = number % max(1, len(names))
        for name in names[turn:] + names[:turn]:
            if results.failed(name):
                continue
            sync()
            try:
                figures = contestants[name](number)
            except NotMeasuredError as reason:
                results.fail(name, str(reason))
            else:
                results.add(name, figures)
                shown = ", ".join(f"{key} {value:.4g}" for key, value in figures.items())
                print(f"  round {number + 1}, {name}: {shown}", flush=True)
    return results
