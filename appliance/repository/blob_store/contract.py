"""What the repository asks of the place where it keeps its blobs: a local folder, later S3.

A blob is immutable: it appears whole under its name, or not at all. Names are made by the
repository (`packs/3f/3f…`, `points/…`), never from guest or network data; they are relative,
`/`-separated, of `[A-Za-z0-9._-]` components, none of them starting with a dot.

One conformance suite, `tests/contract/test_blob_store.py`, runs on every implementation.

Thread model: every method may be called from several threads and several processes at once; a
`BlobWriter` belongs to one thread at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from appliance.base.errors import ApplianceError


class BlobNotFoundError(ApplianceError):
    """A part of the repository is missing. Run `holdfast repo check` to see what it affects."""

    code = "repository.blob-missing"

    def __init__(self, name: str) -> None:
        super().__init__(f"blob {name} does not exist")
        self.name = name


class BlobExistsError(ApplianceError):
    """A blob of this name is there already; blobs are never overwritten."""

    code = "repository.blob-exists"

    def __init__(self, name: str) -> None:
        super().__init__(f"blob {name} exists already")
        self.name = name


@dataclass(frozen=True, slots=True)
class BlobInfo:
    name: str
    size_bytes: int


class BlobWriter(Protocol):
    """A blob in the making. Dropped without `commit` it leaves nothing under its name."""

    @property
    def name(self) -> str: ...

    @property
    def size_bytes(self) -> int:
        """Bytes written so far, which is also the offset of the next one."""
        ...

    def write(self, buffers: Sequence[bytes | memoryview]) -> None:
        """Append all buffers in order, with as few system calls as there can be.

        Raises:
            StorageFullError: no space; the blob must be aborted.
            StorageError: the system refused; the message names the file and the reason.
        """
        ...

    def commit(self) -> None:
        """Make the blob durable and visible under its name; the writer is closed.

        Crash guarantee: after return the blob survives a power cut; before, it does not exist.

        Raises:
            BlobExistsError: the name is taken.
            StorageFullError, StorageError: nothing appeared.
        """
        ...

    def abort(self) -> None:
        """Drop it; idempotent, and harmless after `commit`."""
        ...


class BlobStore(Protocol):
    def create(self, name: str) -> BlobWriter: ...

    def put(self, name: str, data: bytes) -> None:
        """Create, write and commit in one step; a conditional put: an existing name is refused.

        Raises: BlobExistsError, StorageFullError, StorageError.
        """
        ...

    def get(self, name: str, *, limit_bytes: int) -> bytes:
        """Return the whole blob.

        Raises:
            BlobNotFoundError: there is none.
            UnreadableError: its bytes are there, but the medium cannot give them back.
            StorageError: it is larger than `limit_bytes` (checked before memory is allocated), or
                the system refused.
        """
        ...

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        """Return at most `length` bytes from `offset`; fewer only at the end of the blob.

        Raises: BlobNotFoundError, StorageError; UnreadableError: the medium cannot give back these
        bytes; others of the blob may be well.
        """
        ...

    def try_get_range(self, name: str, offset: int, length: int) -> memoryview | None:
        """Return what `get_range` would if it is in memory, else None. Never waits for a disk."""
        ...

    def size_bytes(self, name: str) -> int:
        """Raises BlobNotFoundError."""
        ...

    def list(self, prefix: str) -> Iterator[BlobInfo]:
        """Yield the committed blobs below the folder `prefix` (`packs`), ordered by name.

        Never yields a blob in the making. A listing that cannot be completed raises
        StorageError: an empty answer means that there is nothing, not that looking failed.
        """
        ...

    def delete(self, name: str) -> None:
        """Remove a blob durably; a missing one is not an error (a repeated clean-up)."""
        ...

    def rename(self, name: str, new_name: str) -> None:
        """Move a blob durably, as quarantine does. Raises BlobNotFoundError, BlobExistsError."""
        ...

    def discard_unfinished(self, *, older_than_s: float) -> int:
        """Remove what dead writers left behind; return the bytes freed. Live ones are not hurt."""
        ...
