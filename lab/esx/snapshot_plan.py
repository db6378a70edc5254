"""Which files of a disk's tree are merged or deleted when no snapshot needs them: a pure plan.

A file that neither a snapshot nor the running disk names, and that has exactly one child, takes
the child's data; with none, and being a delta, it goes; with several it stays, because they all
read through it. Source: design notes on vSphere, section 3 "Remove, consolidate".
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass

from lab.esx.datastore_path import DatastorePath


@dataclass(frozen=True, slots=True, kw_only=True)
class Merge:
    """Write `child` into its parent `into`, then everything that named `child` names `into`."""

    child: DatastorePath
    into: DatastorePath


@dataclass(frozen=True, slots=True, kw_only=True)
class Delete:
    path: DatastorePath


Step = Merge | Delete


def plan_consolidation(
    parents: Mapping[DatastorePath, DatastorePath | None], used: Set[DatastorePath]
) -> list[Step]:
    """`parents` has every file of the tree (None: a base); `used` are those named directly."""
    tree, named = dict(parents), set(used)
    steps: list[Step] = []
    while (step := _next_step(tree, named)) is not None:
        steps.append(step)
        if isinstance(step, Delete):
            del tree[step.path]
            continue
        if step.child in named:
            named.remove(step.child)
            named.add(step.into)
        del tree[step.child]
        for path, parent in tree.items():
            if parent == step.child:
                tree[path] = step.into
    return steps


def _next_step(
    tree: Mapping[DatastorePath, DatastorePath | None], named: Set[DatastorePath]
) -> Step | None:
    for path in sorted(tree):
        if path in named:
            continue
        children = [child for child, parent in tree.items() if parent == path]
        if len(children) == 1:
            return Merge(child=children[0], into=path)
        if not children and tree[path] is not None:
            return Delete(path=path)
    return None
