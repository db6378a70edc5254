"""What the live feed keeps of a run's throughput."""

from __future__ import annotations

from appliance.service.live_feed import ThroughputSample, _thinned
from appliance.targets.captured_networks import captured_networks


def test_a_long_run_is_thinned_out_and_covered_from_its_beginning() -> None:
    """Half as many samples, each the mean of two, at the time of the later one."""
    samples = [ThroughputSample(at_s=float(at), bytes_per_s=at * 10.0) for at in range(1, 8)]
    found = _thinned(samples)
    assert [(each.at_s, each.bytes_per_s) for each in found] == [(2, 15), (4, 35), (6, 55)]


def test_networks_of_what_is_no_vsphere_document_are_not_known() -> None:
    """A disk image, another hypervisor, something broken: nothing to map, and no error."""
    for hardware in ({}, {"schema": "other"}, {"schema": 1, "config": []}):
        assert captured_networks(hardware) == ()
