"""Leaf properties of managed objects, in one call for one object.

Only leaf paths are to be asked for: whole `runtime` or `summary` objects hold values that some
servers cannot even express. Thread-safe; blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pyVmomi import vmodl

from vmware.session import Session

_Collector = vmodl.query.PropertyCollector


def read_properties(session: Session, managed: Any, paths: Sequence[str]) -> dict[str, Any]:
    """The values by path; one that is unset, or may not be read, is left out.

    Raises: ObjectGoneError, or another VsphereError.
    """
    spec = _Collector.FilterSpec(
        objectSet=[_Collector.ObjectSpec(obj=managed, skip=False)],
        propSet=[_Collector.PropertySpec(type=type(managed), pathSet=list(paths), all=False)],
    )
    collector = session.content.propertyCollector
    result = session.read(
        f"read {managed._GetMoId()}",
        collector.RetrievePropertiesEx,
        [spec],
        _Collector.RetrieveOptions(),
    )
    found = result.objects if result is not None else []
    return {item.name: item.val for entry in found for item in entry.propSet}
