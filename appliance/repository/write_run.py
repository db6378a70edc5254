"""One run that writes into a repository, from its session to its commit."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Self

from appliance.base.ids import RunId
from appliance.base.run_context import RunContext
from appliance.repository.chunk_writer import ChunkWriter
from appliance.repository.format import index_segment_name
from appliance.repository.image_writer import ImageWriter
from appliance.repository.locks import SessionDetails, SessionKind
from appliance.repository.manifest import Manifest
from appliance.repository.pack import SealedPack

if TYPE_CHECKING:
    from appliance.repository.repository import Repository


class WriteRun:
    """One run that writes: a chunk writer, and at its end at most one commit.

    Left without a commit, by an error or by cancelling, it leaves unreferenced bytes at most.
    """

    def __init__(
        self,
        repository: Repository,
        run_id: RunId,
        context: RunContext,
        parent: Manifest | None = None,
    ) -> None:
        """Raises: LockedError, StorageFullError, StorageError."""
        self.run_id = run_id
        self.parent = parent
        """The parent to build upon; None also when it was forgotten before it was pinned."""
        self._repository = repository
        self._segments = 0
        self._session = ExitStack()
        self._session.enter_context(
            repository.locks.register(
                SessionKind.BACKUP,
                run_id,
                details=SessionDetails(
                    purpose=f"backup of {parent.vm[:200]}" if parent else "",
                    roots=tuple(disk.root_hex for disk in parent.disks) if parent else (),
                ),
                generation=repository.index.generation,
            )
        )
        repository.index.check_current()
        if parent is not None and not repository.points.exists(parent.point_id):
            self.parent = None
        self.chunks = ChunkWriter(
            repository.store,
            repository.index,
            repository.codec,
            repository_id=repository.id,
            publish=self._publish,
            progress=context.progress,
            pack_target_bytes=repository.options.pack_target_bytes,
        )
        self.images = ImageWriter(
            repository.chunks,
            self.chunks,
            repository.chunker,
            repository.digester,
            workers=repository.options.workers,
            context=context,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._session:  # ends last: the commit is visible before the session goes
            self.chunks.abort()

    def make_durable(self) -> None:
        """Make what was written so far durable and indexed; writing goes on. See `ChunkWriter`."""
        self.chunks.make_durable()

    def flush(self) -> None:
        """Make everything written so far durable and indexed; nothing can be written after."""
        self.chunks.commit()

    def commit(self, manifest: Manifest) -> None:
        """Call after `flush`: the recovery point exists once this returns."""
        self._repository.points.commit(manifest)

    def _publish(self, packs: Sequence[SealedPack]) -> None:
        name = index_segment_name(self.run_id, self._segments)
        self._segments += 1
        self._repository.publish_segment(name, packs)
