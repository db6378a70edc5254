"""Datastore paths: they stay on their datastore and in their folder, and their URLs are exact."""

from __future__ import annotations

import pytest

from vmware.datastore_path import DatastorePath
from vmware.errors import InvalidRequestError


def test_a_path_is_taken_apart_and_put_together() -> None:
    """As vSphere writes it, blanks and all."""
    path = DatastorePath.parse("[store 1] web server/web.vmdk")
    assert (path.datastore, path.path, path.name) == ("store 1", "web server/web.vmdk", "web.vmdk")
    assert str(path) == "[store 1] web server/web.vmdk"
    assert str(path.sibling("web-flat.vmdk")) == "[store 1] web server/web-flat.vmdk"
    assert str(DatastorePath.parse("[s] top.vmdk").sibling("a")) == "[s] a"


@pytest.mark.parametrize(
    "text",
    [
        *("", "web.vmdk", "[] a", "[s]", "[s] ", "[s] /a", "[s] a/../b", "[s] ../a", "[s] a//b"),
        *("[s] a/./b", "[s] a/", "[s] a\nb", "[s] a\0b", "[s\n] a", f"[s] {'a' * 3000}"),
    ],
)
def test_what_leads_elsewhere_is_no_path(text: str) -> None:
    """Neither up, nor to the root, nor into another line."""
    with pytest.raises(InvalidRequestError):
        DatastorePath.parse(text)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../a", "/a", "a\\b", "vsan://1", "a\nb"])
def test_a_sibling_is_a_plain_name(name: str) -> None:
    """What a descriptor names cannot be a path."""
    with pytest.raises(InvalidRequestError):
        DatastorePath.parse("[s] web/web.vmdk").sibling(name)


def test_urls_are_escaped_once_and_for_all() -> None:
    """Blanks, umlauts, `&`, `#`, `?` and `%` reach the server as they are."""
    path = DatastorePath.parse("[store & 1] büro #1/a?b%20.vmdk")
    assert path.url_path("Site/DC 1") == (
        "/folder/b%C3%BCro%20%231/a%3Fb%2520.vmdk?dcPath=Site%2FDC%201&dsName=store%20%26%201"
    )
    assert path.url_path(None).endswith(".vmdk?dsName=store%20%26%201")
