"""A repository of the first version of the format, by any chunk rule, stays readable for ever."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest
from blake3 import blake3

from appliance.base.run_context import RunContext
from appliance.jobs.backup import back_up
from appliance.repository.chunker import CHUNK_RULES
from appliance.repository.gc import collect_garbage
from appliance.repository.repository import Repository
from tests.golden.make_repository_v1 import ARCHIVES, KINDS, frozen_vm
from tests.support.check_repository import check_repository, restored
from tests.support.small_backups import back_up_bytes, random_disk


@pytest.mark.parametrize("rule", CHUNK_RULES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_repository_of_version_1_opens_checks_and_restores(
    tmp_path: Path, kind: str, rule: int
) -> None:
    """Every record as written, every disk with its digest; and it can be written to."""
    with tarfile.open(ARCHIVES[rule]) as archive:
        archive.extractall(tmp_path)  # ours: nothing in it leaves the folder
    expected = json.loads((tmp_path / "expected.json").read_text())[kind]
    with Repository.open(tmp_path / kind, passphrase=KINDS[kind]) as repository:
        report = check_repository(repository)
        assert (report.point_count, report.dead_damaged_records) == (2, 0)
        assert set(repository.points.ids()) == set(expected)
        for point_id, digests in expected.items():
            for number, digest in enumerate(digests):
                assert blake3(restored(repository, point_id, number)).hexdigest() == digest
        assert repository.chunker.rule == CHUNK_RULES[rule]
        again = back_up(repository, frozen_vm(2, rule), RunContext.quiet(), full=True).manifest
        old = repository.points.get(list(expected)[-1])
        assert [disk.root_hex for disk in again.disks] == [disk.root_hex for disk in old.disks]
        disk = bytes(random_disk(1, 40))
        manifest = back_up_bytes(repository, disk, "new")
        repository.points.forget(repository.points.ids()[0])
        collect_garbage(repository)
        check_repository(repository)
        assert restored(repository, manifest.point_id) == disk
