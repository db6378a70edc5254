"""The grammar of blob names, checked by every store although the repository makes the names.

A name is relative, `/`-separated, of `[A-Za-z0-9._-]` components that do not start with a dot, so
it can neither leave the repository nor hide in it. `tmp` belongs to blobs in the making.
"""

from __future__ import annotations

import re

from appliance.base.errors import ApplianceError

UNFINISHED_FOLDER = "tmp"
NAME_LIMIT = 900  # characters; S3 keys end at 1024 bytes, prefix included

_COMPONENT = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}")


class BlobNameError(ApplianceError):
    """A name that no repository makes was asked for: whatever holds it is damaged or hostile."""

    code = "repository.blob-name"

    def __init__(self, name: str) -> None:
        super().__init__(f"not a blob name: {name[:NAME_LIMIT]!r}")


def is_component(text: str) -> bool:
    return _COMPONENT.fullmatch(text) is not None


def check_name(name: str) -> None:
    """Raises BlobNameError."""
    components = name.split("/") if len(name) <= NAME_LIMIT else []
    if (
        not components
        or components[0] == UNFINISHED_FOLDER
        or not all(map(is_component, components))
    ):
        raise BlobNameError(name)
