"""Mark: which digests the recovery points need, over shared tree nodes each visited once.

Live digests are held by their first 8 bytes, as a sorted array: 8 bytes for each, where Python
objects would take 100. Digests are keyed BLAKE3, so prefixes collide at random only, and a
collision merely keeps garbage. Tree nodes that were visited are remembered in full, because there
a collision would lose a subtree.

Nothing is concluded from absence: a manifest or node that cannot be read, or a chunk that the
index does not know, raises GcRefusedError.

Thread model: one thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from appliance.base.errors import ApplianceError
from appliance.base.run_context import CancelToken
from appliance.repository.errors import CorruptError, RepositoryError
from appliance.repository.format import (
    EMPTY_DIGEST,
    LEAF_ENTRY,
    LEAF_MAGIC,
    NODE_HEADER,
    REPOSITORY_VERSION,
)
from appliance.repository.image_tree import ROOT_LEVEL, decode_inner
from appliance.repository.index_rows import as_array, prefixes_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from appliance.repository.repository import Repository

_LEAVES_AT_ONCE = 128  # of some KiB each
_FIRST_CAPACITY = 1 << 16


class GcRefusedError(RepositoryError):
    """Nothing was removed: it cannot be told what a recovery point needs.

    Run `holdfast repo check`; then repair or forget the recovery point that is named.
    """

    code = "gc.refused"

    def __init__(self, where: str, reason: object) -> None:
        super().__init__(f"{where}: {reason}")
        self.where = where


class PrefixSet:
    """A growing set of digest prefixes: 8 to 12 bytes for each."""

    def __init__(self) -> None:
        import numpy as np

        self._held = np.empty(_FIRST_CAPACITY, dtype=np.uint64)
        self._count = 0
        self._sorted = True

    @property
    def held_bytes(self) -> int:
        return self._held.nbytes

    def add(self, prefixes: NDArray[Any]) -> None:
        if self._count + len(prefixes) > len(self._held):
            self._make_room(len(prefixes))
        self._held[self._count : self._count + len(prefixes)] = prefixes
        self._count += len(prefixes)
        self._sorted = False

    def array(self) -> NDArray[Any]:
        """Return the prefixes, sorted, each once; a view that the next `add` may change."""
        if not self._sorted:
            self._compact()
        return self._held[: self._count]

    def contains(self, prefixes: NDArray[Any]) -> NDArray[Any]:
        """Return for each whether it is in the set."""
        import numpy as np

        held = self.array()
        if not len(held):
            return np.zeros(len(prefixes), dtype=bool)
        at = np.searchsorted(held, prefixes)
        at[at == len(held)] = 0
        found: NDArray[Any] = held[at] == prefixes
        return found

    def missing_from(self, arrays: Iterable[NDArray[Any]]) -> NDArray[Any]:
        """Return the prefixes that stand in none of `arrays`."""
        import numpy as np

        held = self.array()
        found = np.zeros(len(held), dtype=bool)
        if len(held):
            for prefixes in arrays:
                at = np.searchsorted(held, prefixes)
                at[at == len(held)] = 0
                found[at[held[at] == prefixes]] = True
        return held[~found]

    def _make_room(self, wanted: int) -> None:
        import numpy as np

        self._compact()
        need = self._count + wanted
        if need > len(self._held) * 3 // 4:  # else sorting again and again
            grown = np.empty(max(need, len(self._held)) * 3 // 2, dtype=np.uint64)
            grown[: self._count] = self._held[: self._count]
            self._held = grown

    def _compact(self) -> None:
        import numpy as np

        held = self._held[: self._count]
        held.sort()
        if len(held):
            first = np.empty(len(held), dtype=bool)
            first[0] = True
            np.not_equal(held[1:], held[:-1], out=first[1:])
            kept = held[first]
            self._held[: len(kept)] = kept
            self._count = len(kept)
        self._sorted = True


@dataclass(frozen=True, slots=True)
class Root:
    digest: bytes
    where: str  # for the operator: which point or session


class Mark:
    def __init__(self, repository: Repository, cancel: CancelToken | None = None) -> None:
        self.live = PrefixSet()
        self._chunks = repository.chunks
        self._cancel = cancel or CancelToken()
        self._visited: set[bytes] = {EMPTY_DIGEST}

    def add(self, roots: Iterable[Root]) -> None:
        """Mark all that these trees reach. Raises GcRefusedError, CancelledError, StorageError."""
        for root in roots:
            try:
                self._inner(root.digest, ROOT_LEVEL)
            except CorruptError as error:
                raise GcRefusedError(root.where, error) from error

    def _inner(self, digest: bytes, level: int) -> None:
        if digest in self._visited:
            return
        self._cancel.check()
        children = list(decode_inner(self._chunks.load(digest), level).values())
        if level > 1:
            for child in children:
                self._inner(child, level - 1)
        else:
            self._leaves([child for child in children if child not in self._visited])
        self._visited.add(digest)
        self.live.add(prefixes_of([digest, *children]))

    def _leaves(self, digests: list[bytes]) -> None:
        import numpy as np

        for start in range(0, len(digests), _LEAVES_AT_ONCE):
            loaded = self._chunks.load_many(digests[start : start + _LEAVES_AT_ONCE])
            self.live.add(np.concatenate([leaf_prefixes(raw) for raw in loaded.values()]))
            self._visited.update(loaded)


def leaf_prefixes(raw: bytes) -> NDArray[Any]:
    """Return the digest prefixes in a leaf, in its order. Raises CorruptError."""
    import numpy as np

    magic, version, level, count = NODE_HEADER.unpack_from(raw)
    if (magic, version, level) != (LEAF_MAGIC, REPOSITORY_VERSION, 0):
        raise CorruptError("not a leaf")
    if len(raw) != NODE_HEADER.size + count * LEAF_ENTRY.size:
        raise CorruptError("leaf has another length than its entries")
    entry = np.dtype([("place", "<u4"), ("prefix", ">u8"), ("rest", "V24")])
    prefixes: NDArray[Any] = np.frombuffer(raw, dtype=entry, offset=NODE_HEADER.size)["prefix"]
    return prefixes.astype(np.uint64)


def roots_of_now(repository: Repository) -> list[Root]:
    """Everything that is needed at one moment: manifests, and what live sessions have pinned.

    Raises: GcRefusedError, StorageError.
    """
    with repository.locks.points_stay():
        roots = [
            Root(bytes.fromhex(root), f"{session}")
            for session in repository.locks.live()
            for root in session.details.roots
        ]
        for point_id in repository.points.ids():
            try:
                manifest = repository.points.get(point_id)
            except ApplianceError as error:
                raise GcRefusedError(f"recovery point {point_id}", error) from error
            where = f"recovery point {point_id} of {manifest.vm}"
            roots += [Root(disk.root, where) for disk in manifest.disks]
    return roots


def index_arrays(repository: Repository) -> Iterator[NDArray[Any]]:
    """Yield the rows of all records that can be found, doomed ones included."""
    for doomed in (False, True):
        for rows in repository.index.rows(doomed=doomed):
            yield as_array(rows)


def known_prefixes(repository: Repository) -> Iterator[NDArray[Any]]:
    """Yield the prefixes of all that can be found, and of all that is known to be damaged."""
    import numpy as np

    for rows in index_arrays(repository):
        yield rows["prefix"].astype(np.uint64)
    yield prefixes_of(list(repository.index.quarantined()))


def check_complete(repository: Repository, mark: Mark) -> None:
    """Raise GcRefusedError unless every live digest can be found or is known to be damaged."""
    missing = mark.live.missing_from(known_prefixes(repository))
    if len(missing):
        example = int(missing[0]).to_bytes(8, "big").hex()
        raise GcRefusedError(
            "the index",
            f"{len(missing)} chunks that recovery points need are not in it ({example}…)",
        )
