"""What can be wrong with a repository. The docstrings are what the operator reads."""

from __future__ import annotations

from appliance.base.errors import ApplianceError, StorageError


class RepositoryError(ApplianceError):
    """The repository cannot be used as asked; the message says why."""

    code = "repository.failed"


class RepositoryNotFoundError(RepositoryError):
    """There is no repository here. Check the path, or create one with `holdfast repo init`."""

    code = "repository.not-found"


class RepositoryExistsError(RepositoryError):
    """There is a repository, or something else, in this folder already."""

    code = "repository.exists"


class RepositoryVersionError(RepositoryError):
    """A newer Holdfast wrote this repository. Update Holdfast, then try again."""

    code = "repository.version"


class CorruptError(RepositoryError):
    """Stored bytes are not what was written. Run `holdfast repo check --read-data`."""

    code = "repository.corrupt"


class UnreadableError(CorruptError, StorageError):
    """The disk cannot read these bytes back (a bad sector). Run `holdfast repo check --read-data`,
    which goes around them, then replace the disk.
    """

    code = "repository.unreadable"
    retryable = True


class ChunkCorruptError(CorruptError):
    """A chunk or tree node does not match its digest. Run `holdfast repo check --read-data`."""

    code = "repository.chunk-corrupt"

    def __init__(self, digest: bytes, reason: str) -> None:
        super().__init__(f"{digest.hex()[:16]}…: {reason}")
        self.digest = digest


class ChunkMissingError(CorruptError):
    """A chunk or tree node cannot be found. `holdfast repo check` says what is affected."""

    code = "repository.chunk-missing"

    def __init__(self, digest: bytes, *, quarantined: bool = False) -> None:
        why = "was found damaged and is in quarantine" if quarantined else "is not in the index"
        super().__init__(f"{digest.hex()[:16]}… {why}")
        self.digest = digest
        self.quarantined = quarantined


class PointNotFoundError(RepositoryError):
    """There is no such recovery point. `holdfast point list` shows those there are."""

    code = "repository.point-not-found"

    def __init__(self, point_id: str) -> None:
        super().__init__(f"no recovery point {point_id}")
        self.point_id = point_id
