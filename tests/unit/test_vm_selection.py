"""Which VMs a command means."""

from __future__ import annotations

import pytest

from appliance.base.errors import UsageError
from appliance.jobs.vm_selection import AmbiguousVmError, Selection, select_vms
from appliance.sources.contract import SourceVm, VmNotFoundError
from appliance.sources.errors import SourceReadError
from appliance.sources.vm_identity import PointNames
from tests.support.fake_source import FakeSource, FakeVm


class _Dead(FakeSource):
    def list_vms(self) -> list[SourceVm]:
        raise SourceReadError("does not answer")


SOURCE = FakeSource(
    [
        FakeVm("web1", [], tags=frozenset({"gold"})),
        FakeVm("web2", []),
        FakeVm("db", [], tags=frozenset({"gold", "sql"})),
        FakeVm("old [x]", [], folder="/dc/vm/archive"),
    ]
)
TWIN = FakeSource([FakeVm("db", [])], name="other")


def _select(
    *patterns: str, tags: tuple[str, ...] = (), more: FakeSource | None = None
) -> Selection:
    sources = [SOURCE] if more is None else [SOURCE, more]
    return select_vms(sources, patterns, tags, PointNames([]))


def _names(selection: Selection) -> list[str]:
    return [found.vm.name for found in selection.vms]


def test_names_globs_and_tags_select_each_vm_once() -> None:
    """In the order of the patterns; a name with glob characters is found by its name."""
    assert _names(_select("db", "web*", "*")) == ["db", "web1", "web2", "old [x]"]
    assert _names(_select("old [x]")) == ["old [x]"]
    assert _names(_select("/dc/vm/archive/*")) == ["old [x]"]
    assert _names(_select(tags=("gold",))) == ["web1", "db"]
    assert _names(_select("web*", tags=("gold", "sql"))) == ["web1"]


def test_only_a_name_counts_as_named() -> None:
    """It decides whether a VM that cannot be protected fails the run."""
    assert [found.named for found in _select("db", "web*").vms] == [True, False, False]


def test_what_matches_nothing_is_an_error() -> None:
    """A typing error must not look like a backup."""
    with pytest.raises(VmNotFoundError):
        _select("nothing")
    with pytest.raises(VmNotFoundError):
        _select("nothing*")
    with pytest.raises(UsageError):
        _select()


def test_a_name_that_two_vms_have_must_be_made_clear() -> None:
    """The folder or the host says which; a glob takes both."""
    lone = FakeSource([FakeVm("db", [], folder="/a"), FakeVm("db", [], folder="/b")])
    with pytest.raises(AmbiguousVmError):
        select_vms([lone], ["db"], (), PointNames([]))
    assert len(select_vms([lone], ["d*"], (), PointNames([])).vms) == 2
    assert len(select_vms([lone], ["/b/db"], (), PointNames([])).vms) == 1


def test_a_host_that_does_not_answer_stops_no_other() -> None:
    """What is found elsewhere is backed up; the failure is reported beside it."""
    selection = _select("db", "elsewhere", more=_Dead([], name="dead"))
    assert _names(selection) == ["db"]
    assert [failure.host for failure in selection.failures] == ["dead"]
