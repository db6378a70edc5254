"""Recovery points for tests: disks of given content, written and committed as `back_up` does."""

from __future__ import annotations

from typing import Any

from appliance.base.consistency import Consistency
from appliance.base.run_context import RunContext
from appliance.blocks.device import BlockReader
from appliance.repository.manifest import DiskEntry, Manifest
from appliance.repository.repository import Repository


def commit_point(
    repository: Repository,
    *disks: BlockReader,
    vm: str = "vm",
    hardware: dict[str, Any] | None = None,
) -> Manifest:
    run_id = repository.new_run_id()
    now = repository.clock.now()
    with repository.begin_run(run_id, RunContext.quiet()) as run:
        results = [run.images.write(disk, None, None) for disk in disks]
        run.flush()
        manifest = Manifest(
            point_id=run_id,
            run_id=run_id,
            vm=vm,
            created_at=now,
            committed_at=now,
            consistency=Consistency.OFFLINE,
            source="test",
            hardware=hardware or {},
            disks=tuple(
                DiskEntry(
                    number=number,
                    label=f"disk {number}",
                    size_bytes=result.size_bytes,
                    root_hex=result.root.hex(),
                    read_bytes=result.read_bytes,
                    changed_bytes=result.changed_bytes,
                    new_bytes=result.new_bytes,
                    stored_bytes=result.stored_bytes,
                )
                for number, result in enumerate(results)
            ),
            written_by="test",
        )
        run.commit(manifest)
    return manifest
