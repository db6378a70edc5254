"""Every failure of `vmware/` has its counterpart with the same code."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from appliance.base.errors import ApplianceError, SourceError
from appliance.sources.vsphere_errors import (
    VsphereCertificateError,
    VsphereFailedError,
    as_appliance_errors,
)
from vmware import errors as leaf


def _kinds(kind: type[leaf.VsphereError] = leaf.VsphereError) -> Iterator[type[leaf.VsphereError]]:
    if kind.__module__ == "vmware.errors":
        yield kind
    for child in kind.__subclasses__():
        yield from _kinds(child)


@pytest.mark.parametrize("kind", sorted(set(_kinds()), key=lambda kind: kind.__name__))
def test_an_error_of_the_library_keeps_code_message_and_retryable(
    kind: type[leaf.VsphereError],
) -> None:
    """None falls through to the general one; the name of the host comes before the message."""
    with pytest.raises(SourceError) as caught, as_appliance_errors("vc1"):
        raise kind("no answer")
    assert str(caught.value) == "vc1: no answer"
    assert (caught.value.code, caught.value.retryable) == (kind.code, kind.retryable)
    assert caught.value.__cause__.__class__ is kind


def test_a_kind_that_is_not_in_the_table_becomes_its_nearest_ancestor() -> None:
    """What it says of itself about trying again is kept."""

    class OddError(leaf.BusyError):
        retryable = False

    with pytest.raises(VsphereFailedError) as caught, as_appliance_errors("vc1"):
        raise OddError("odd")
    assert (caught.value.code, caught.value.retryable) == ("vsphere.busy", False)


def test_fingerprints_are_kept_and_other_errors_pass() -> None:
    """The command line shows both fingerprints."""
    with pytest.raises(VsphereCertificateError) as caught, as_appliance_errors("vc1"):
        raise leaf.CertificateError("other", expected="AA", found="BB")
    assert (caught.value.expected, caught.value.found) == ("AA", "BB")
    with pytest.raises(KeyError), as_appliance_errors("vc1"):
        raise KeyError
    assert issubclass(VsphereFailedError, ApplianceError)
