"""docs/nfs.md says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

from appliance.exports.datastore import names
from nfs_server import limits, protocol, replay_cache
from nfs_server.handles import HANDLE_BYTES
from nfs_server.nfs3 import SERVICES, Effect, Lane
from nfs_server.protocol import Procedure

PAGE = (Path(__file__).parents[2] / "docs" / "nfs.md").read_text()


def row(lane: Lane) -> str:
    found = re.search(rf"^\| {lane.value} \| ([^|]*) \|", PAGE, re.MULTILINE)
    assert found is not None
    return found[1]


def test_every_procedure_is_served_on_the_lane_that_the_page_says() -> None:
    """Which calls wait for which; "what changes names or attributes" are those done once."""
    for number, service in SERVICES.items():
        if service.effect is Effect.ONCE:
            assert service.lane is Lane.METADATA
        else:
            assert re.search(rf"\b{Procedure(number).name}s?\b", row(service.lane)), number
    for lane in Lane:
        for name in re.findall(r"\b[A-Z]{4,}\b", row(lane).replace("READs", "READ")):
            served = SERVICES[Procedure[name]]
            assert served.lane is lane or (name == "READ" and lane is Lane.LOOP), name


def test_the_bounds_of_the_page_are_those_of_the_code() -> None:
    """Figures that an operator plans with."""
    most = limits.Limits()
    text = " ".join(PAGE.split())
    for figure in (
        f"{most.connections} connections",
        f"{limits.STRANGERS} from addresses",
        f"{most.memory_bytes >> 20} MiB for calls",
        f"names of {protocol.NAME_BYTES_MAX} bytes",
        f"symbolic links of {protocol.SYMLINK_BYTES_MAX}",
        f"{names._LINKS_MAX} links",
        f"{names.NODES_MAX:,} files".replace(",", " "),
        f"{HANDLE_BYTES} bytes: magic",
        f"| {most.metadata_workers} threads |",
        f"| {most.data_workers} threads |",
        f"at most {most.batches_per_connection} batches",
    ):
        assert figure in text, figure
    assert most.connections_per_client * 2 == most.connections
    assert replay_cache.KEPT_S == 180, "three minutes"
