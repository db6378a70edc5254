"""Garbage collection and quarantine: which damaged packs go, which stay, which notes are done.

A damaged record that a recovery point still needs is kept, should its storage come to its senses.
One that was healed, or that nobody needs any more, is a reason to rewrite its pack.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from appliance.repository.boot_profile import profile_name
from appliance.repository.format import BOOT_PROFILES, INDEX_SEGMENTS
from appliance.repository.index_rows import prefixes_of
from appliance.repository.mark import Mark
from appliance.repository.quarantine import StandingNote

if TYPE_CHECKING:
    from appliance.repository.repository import Repository


def quarantined_packs(repository: Repository, mark: Mark) -> tuple[set[bytes], set[bytes]]:
    """Return the packs to be rewritten for damaged records in them, and those to be kept."""
    forced: set[bytes] = set()
    kept: set[bytes] = set()
    for standing in repository.quarantine.standing():
        if standing.pack_id is not None:
            (kept if _needed(standing, mark) else forced).add(standing.pack_id)
    return forced - kept, kept


def tidy(repository: Repository, mark: Mark) -> None:
    """Remove what nobody needs to know any more.

    That is: notes whose damaged pack is gone and whose chunks were healed or are needed by nobody;
    names of index segments that are gone; boot profiles of forgotten points.
    """
    packs = {pack.pack_id for pack in repository.index.packs()}
    for standing in repository.quarantine.standing():
        if standing.pack_id not in packs and not _needed(standing, mark):
            repository.quarantine.remove(standing)
            repository.index.drop_bad(standing.missing)
    known = repository.index.segments()  # first: a name is taken in after its blob is there
    known.difference_update(blob.name for blob in repository.store.list(INDEX_SEGMENTS))
    repository.index.forget_segments(known)
    profiles = [blob.name for blob in repository.store.list(BOOT_PROFILES)]  # before the points
    wanted = {profile_name(point_id) for point_id in repository.points.ids()}
    for name in profiles:
        if name not in wanted:
            repository.store.delete(name)


def _needed(standing: StandingNote, mark: Mark) -> bool:
    return bool(mark.live.contains(prefixes_of(list(standing.missing))).any())
