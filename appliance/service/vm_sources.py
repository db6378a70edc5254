"""The registered hosts as sources and targets: sessions opened, intents joined to the catalog.

Thread model: `open_sources`, `open_target` and `clean_up` belong to one thread; what they open to
any.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

from appliance.base.errors import ApplianceError, UsageError
from appliance.base.ids import RunId
from appliance.base.log import EventLog
from appliance.base.run_context import CancelToken
from appliance.catalog.catalog import Catalog
from appliance.catalog.hosts import HostRecord
from appliance.catalog.intents import IntentId, IntentKind
from appliance.catalog.run_locks import CleaningBusyError
from appliance.jobs.runners.site import OpenedSources
from appliance.jobs.vm_selection import HostFailure
from appliance.service.hosts import open_host, open_to_read
from appliance.sources.contract import Orphan, VmSource
from appliance.sources.hyperv import HypervSource
from appliance.sources.hyperv_host import HypervHost
from appliance.sources.intents import Made, OpenIntent
from appliance.sources.vsphere import VsphereSource
from appliance.sources.vsphere_transports import SourceTools, VsphereTransports
from appliance.targets.contract import VmTarget
from appliance.targets.hyperv import HypervTarget
from appliance.targets.vsphere import VsphereTarget

log = EventLog(__name__)

_LOOK_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedTarget:
    """One host, to read from and to write to."""

    source: VmSource
    target: VmTarget


class HostIntents:
    """The catalog's journal as one host's source sees it (`sources.intents.Intents`)."""

    def __init__(self, catalog: Catalog, host: str) -> None:
        self._journal = catalog.intents
        self._host = host

    def record(self, kind: Made, run_id: RunId, target: str, name: str, detail: str = "") -> int:
        return self._journal.record(
            IntentKind(kind.value),
            host=self._host,
            run_id=run_id,
            target_moref=target,
            name=name,
            detail=detail,
        )

    def complete(self, intent: int, made: str) -> None:
        self._journal.complete(IntentId(intent), made)

    def close(self, intent: int) -> None:
        self._journal.close(IntentId(intent))

    def abandoned(self) -> Sequence[OpenIntent]:
        return [
            OpenIntent(
                id=intent.id,
                kind=intent.kind.value,
                run_id=intent.run_id,
                target=intent.target_moref,
                detail=intent.detail,
                name=intent.name,
                made=intent.made_moref,
            )
            for intent in self._journal.abandoned(host=self._host)
        ]


@contextmanager
def open_sources(
    catalog: Catalog,
    hosts: Sequence[str] = (),
    tools: SourceTools | None = None,
) -> Iterator[OpenedSources]:
    """Log in to the registered hosts of these names, or to all; one that fails stops no other.

    Raises: HostNotFoundError, UsageError: no host is registered; of a lone host, why it failed.
    """
    records = [catalog.hosts.get(host) for host in hosts] or catalog.hosts.list()
    if not records:
        raise UsageError("no host is registered; `holdfast host add` does that")
    tools = tools or SourceTools()
    with ExitStack() as opened:
        sources: list[VmSource] = []
        failures: list[HostFailure] = []
        for record in records:
            try:
                source = _open_source(catalog, record, tools)
            except ApplianceError as error:
                if len(records) == 1:
                    raise
                failures.append(HostFailure(host=record.name, error=error))
                continue
            opened.callback(source.close)
            sources.append(source)
        yield OpenedSources(sources=tuple(sources), failures=tuple(failures))


def _open_source(catalog: Catalog, record: HostRecord, tools: SourceTools) -> VmSource:
    host = open_to_read(catalog, record)
    intents = HostIntents(catalog, record.name)
    if isinstance(host, HypervHost):
        return HypervSource(host, intents, catalog.appliance_id, catalog.clock)
    transports = VsphereTransports(tools, partial(catalog.hosts.password, record))
    return VsphereSource(host, transports, intents, catalog.appliance_id)


@contextmanager
def open_target(
    catalog: Catalog, host: str | None = None, tools: SourceTools | None = None
) -> Iterator[OpenedTarget]:
    """Log in to one registered host; without a name, to the only one there is.

    Raises: HostNotFoundError, UsageError: none or several are registered; why it failed.
    """
    records = [catalog.hosts.get(host)] if host else catalog.hosts.list()
    if len(records) != 1:
        names = ", ".join(record.name for record in records) or "none; `holdfast host add`"
        raise UsageError(f"say to which host, with --host (registered: {names})")
    record = records[0]
    opened_host = open_host(catalog, record)
    intents = HostIntents(catalog, record.name)
    if isinstance(opened_host, HypervHost):
        opened = OpenedTarget(
            source=HypervSource(opened_host, intents, catalog.appliance_id, catalog.clock),
            target=HypervTarget(opened_host, intents, catalog.appliance_id),
        )
    else:
        shared = VsphereTransports(tools or SourceTools(), partial(catalog.hosts.password, record))
        opened = OpenedTarget(
            source=VsphereSource(opened_host, shared, intents, catalog.appliance_id),
            target=VsphereTarget(opened_host, shared, intents, catalog.appliance_id),
        )
    try:
        yield opened
    finally:
        opened.source.close()


def clean_up(
    catalog: Catalog,
    sources: Sequence[VmSource],
    *,
    wait_s: float = 0.0,
    cancel: CancelToken | None = None,
) -> list[Orphan]:
    """Remove what killed runs left on the hosts; for the start of a backup, and for every hour.

    Another process or thread that is at it does it for us; `wait_s` is how long to wait for its
    end, which spares a backup the snapshots that are just being removed. A host that cannot be
    asked is left for the next time. Raises: StorageError; CancelledError while waiting.
    """
    cancel = cancel or CancelToken()
    waits = int(wait_s / _LOOK_S)
    while True:
        try:
            with catalog.run_locks.cleaning():
                return _remove_orphans(catalog, sources)
        except CleaningBusyError:
            if waits <= 0:
                return []
        waits -= 1
        cancel.wait(_LOOK_S)
        cancel.check()


def _remove_orphans(catalog: Catalog, sources: Sequence[VmSource]) -> list[Orphan]:
    orphans: list[Orphan] = []
    for source in sources:
        try:
            orphans += source.remove_orphans(catalog.run_locks.alive)
        except ApplianceError as error:
            log.warning("clean-up of a host failed", host=source.name, error=error)
    return orphans
