"""What a node of a practice failover cluster knows of the cluster.

Thread model: any thread.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from lab.hyperv_host.windows_path import WindowsPath

SHARED_VOLUMES = WindowsPath("C:\\ClusterStorage")


class NodeState(IntEnum):
    UP = 0
    DOWN = 1
    PAUSED = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """A machine of the cluster and the node that it belongs to."""

    vm_id: str
    name: str
    owner: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedVolume:
    name: str
    path: WindowsPath
    coordinator: str


class ClusterView(Protocol):
    name: str

    def nodes(self) -> list[tuple[str, NodeState]]: ...
    def roles(self) -> list[Role]: ...
    def volumes(self) -> list[SharedVolume]: ...
