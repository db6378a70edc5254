"""List, open, commit and forget recovery points: the only committer.

A recovery point exists when its manifest blob does. Committing is one conditional put after
everything the manifest refers to is durable; forgetting is one delete, and garbage collection
later frees what only that point needed.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Protocol

from appliance.base.errors import UsageError
from appliance.base.ids import RecoveryPointId, parse_point_id
from appliance.repository.blob_store.contract import BlobNotFoundError, BlobStore
from appliance.repository.boot_profile import profile_name
from appliance.repository.document import DocumentCodec
from appliance.repository.errors import CorruptError, PointNotFoundError
from appliance.repository.format import DOCUMENT_LIMIT_BYTES, POINTS, point_name
from appliance.repository.manifest import Manifest

_CACHE_POINTS_MAX = 50_000  # some kilobytes each


class PointListener(Protocol):
    """Hears of what this process did to the points, on the thread that did it; must not raise."""

    def committed(self, manifest: Manifest) -> None: ...

    def forgotten(self, point_id: RecoveryPointId) -> None: ...


class RecoveryPoints:
    """Thread-safe and process-safe: it keeps nothing but a bounded cache of what never changes."""

    def __init__(
        self,
        store: BlobStore,
        codec: DocumentCodec,
        *,
        forgetting: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """`forgetting` is held around the removal of a manifest, see `locks.py`."""
        self._store = store
        self._codec = codec
        self._forgetting = forgetting
        self._cache: OrderedDict[str, Manifest] = OrderedDict()
        self._cache_lock = threading.Lock()
        self._listeners: list[PointListener] = []

    def add_listener(self, listener: PointListener) -> None:
        self._listeners.append(listener)

    def ids(self) -> list[RecoveryPointId]:
        """Return the ids of all points, oldest first; readable or not."""
        found = []
        for blob in self._store.list(POINTS):
            stem, _, suffix = blob.name.rpartition("/")[2].rpartition(".")
            if suffix == "point":
                with suppress(UsageError):  # not ours: the copy that a file tool made, say
                    found.append(parse_point_id(stem))
        return sorted(found)

    def readable(self) -> tuple[list[Manifest], dict[RecoveryPointId, CorruptError]]:
        """Return all manifests, oldest first, and why the others cannot be read."""
        manifests: list[Manifest] = []
        damaged: dict[RecoveryPointId, CorruptError] = {}
        for point_id in self.ids():
            try:
                manifests.append(self.get(point_id))
            except CorruptError as error:
                damaged[point_id] = error
            except PointNotFoundError:
                continue  # forgotten since the listing
        manifests.sort(key=lambda manifest: (manifest.created_at, manifest.point_id))
        return manifests, damaged

    def list(self, vm: str | None = None) -> list[Manifest]:
        """Return the points of a VM, or all, oldest first.

        A manifest that cannot be read is left out here; `check` reports it by name.
        """
        manifests, _ = self.readable()
        return [manifest for manifest in manifests if vm is None or manifest.vm == vm]

    def get(self, point_id: str) -> Manifest:
        """Raises PointNotFoundError, CorruptError, UsageError (not a point id)."""
        with self._cache_lock:
            if point_id in self._cache:
                return self._cache[point_id]
        name = point_name(parse_point_id(point_id))
        try:
            blob = self._store.get(name, limit_bytes=DOCUMENT_LIMIT_BYTES)
        except BlobNotFoundError as error:
            raise PointNotFoundError(point_id) from error
        try:
            manifest = Manifest.model_validate_json(self._codec.decode(name, blob))
        except ValueError as error:  # pydantic's ValidationError
            raise CorruptError(f"{name}: {error}") from error
        if manifest.point_id != point_id:
            raise CorruptError(f"{name}: names itself {manifest.point_id}")
        with self._cache_lock:
            self._cache[point_id] = manifest
            while len(self._cache) > _CACHE_POINTS_MAX:
                self._cache.popitem(last=False)
        return manifest

    def exists(self, point_id: str) -> bool:
        """Whether the point is there now, asked of the store. Raises StorageError."""
        try:
            self._store.size_bytes(point_name(parse_point_id(point_id)))
        except BlobNotFoundError:
            return False
        return True

    def drop_cache(self) -> None:
        """Read manifests anew, as a check must."""
        with self._cache_lock:
            self._cache.clear()

    def find(self, text: str) -> Manifest:
        """Return the point that a person means: an id, a unique prefix of one, or `latest:VM`."""
        if text.startswith("latest:"):
            points = self.list(text.removeprefix("latest:"))
            if not points:
                raise PointNotFoundError(text)
            return points[-1]
        matching = [point_id for point_id in self.ids() if point_id.startswith(text)]
        if text in matching:
            matching = [RecoveryPointId(text)]
        if not matching or not text:
            raise PointNotFoundError(text)
        if len(matching) > 1:
            raise UsageError(f"{text!r} is the beginning of {len(matching)} recovery points")
        return self.get(matching[0])

    def latest(self, vm: str) -> Manifest | None:
        points = self.list(vm)
        return points[-1] if points else None

    def commit(self, manifest: Manifest) -> None:
        """Make the point exist. Everything it refers to must be durable already.

        Raises: BlobExistsError, StorageFullError, StorageError; then there is no new point.
        """
        name = point_name(manifest.point_id)
        self._store.put(name, self._codec.encode(name, manifest.model_dump_json().encode()))
        for listener in self._listeners:
            listener.committed(manifest)

    def forget(self, point_id: RecoveryPointId) -> None:
        """Remove the point; its space comes back with the next garbage collection. Idempotent."""
        name = point_name(parse_point_id(point_id))
        with self._forgetting():
            self._store.delete(name)
        self._store.delete(profile_name(point_id))
        with self._cache_lock:
            self._cache.pop(point_id, None)
        for listener in self._listeners:
            listener.forgotten(point_id)
