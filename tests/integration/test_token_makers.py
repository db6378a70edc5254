"""A token of the API and the account that made it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.api.services import Services
from appliance.base.secret import Secret
from appliance.catalog.accounts import Role
from tests.support.api_server import Client, api_serving

PASSWORD = "a password that is long"


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Services, int]]:
    with api_serving(tmp_path) as opened:
        yield opened


def logged_in(served: tuple[Services, int], name: str) -> Client:
    services, port = served
    services.catalog.accounts.create(name, Secret.of_text(PASSWORD), Role.ADMINISTRATOR)
    client = Client(port)
    assert client.log_in(name, PASSWORD).status == 204
    return client


def made(by: Client, role: Role, name: str = "ci") -> Client:
    answer = by.api("POST", "/tokens", {"name": name, "role": role})
    return Client(by.port, token=answer.document["token"])


def listed(client: Client) -> dict[str, Any]:
    return {each["name"]: each for each in client.api("GET", "/tokens").document}


def test_a_token_is_removed_with_the_account_that_made_it(served: tuple[Services, int]) -> None:
    """Also one that was made with a token of it; those of others stay."""
    anna, bert = logged_in(served, "anna"), logged_in(served, "bert")
    token, other = made(bert, Role.ADMINISTRATOR), made(anna, Role.READ_ONLY, "other")
    nested = made(token, Role.ADMINISTRATOR, "nested")
    assert anna.api("DELETE", "/accounts/bert").status == 204
    assert [client.api("GET", "/me").status for client in (token, nested, other)] == [401, 401, 200]
    assert list(listed(anna)) == ["other"]
    logged_in(served, "bert")
    assert token.api("GET", "/me").status == 401


def test_a_token_is_refused_while_its_account_is_disabled(served: tuple[Services, int]) -> None:
    """It is good again with the account; a refused use is none."""
    anna, bert = logged_in(served, "anna"), logged_in(served, "bert")
    token = made(bert, Role.OPERATOR)
    assert anna.api("PATCH", "/accounts/bert", {"disabled": True}).status == 200
    assert token.api("GET", "/me").status == 401
    assert (listed(anna)["ci"]["refused"], listed(anna)["ci"]["used_at"]) == (True, None)
    assert "the token is refused" in anna.call("GET", "/accounts").body.decode()
    assert anna.api("PATCH", "/accounts/bert", {"disabled": False}).status == 200
    assert token.api("GET", "/me").document["role"] == "operator"
    assert not listed(anna)["ci"]["refused"]


def test_a_token_may_do_no_more_than_its_account_may_now(served: tuple[Services, int]) -> None:
    """The lesser of both roles, at once, in the list and on the page too."""
    anna, bert = logged_in(served, "anna"), logged_in(served, "bert")
    strong, weak = made(bert, Role.ADMINISTRATOR), made(bert, Role.READ_ONLY, "weak")
    assert anna.api("PATCH", "/accounts/bert", {"role": "restore-only"}).status == 200
    new = {"name": "puppet", "password": PASSWORD, "role": "administrator"}
    assert strong.api("POST", "/accounts", new).status == 403
    assert strong.api("GET", "/me").document["role"] == "restore-only"
    assert weak.api("GET", "/me").document["role"] == "read-only"
    shown = listed(anna)
    assert (shown["ci"]["role"], shown["ci"]["acts_as"]) == ("administrator", "restore-only")
    assert shown["weak"]["acts_as"] == "read-only"
    assert "now no more than restore-only" in anna.call("GET", "/accounts").body.decode()
    assert anna.api("PATCH", "/accounts/bert", {"role": "administrator"}).status == 200
    assert strong.api("GET", "/me").document["role"] == "administrator"


def test_a_token_that_outlived_its_account_in_an_older_release_is_refused(
    served: tuple[Services, int],
) -> None:
    """It shows as refused, and a new account of the same name does not revive it."""
    services, port = served
    anna = logged_in(served, "anna")
    token = Client(
        port, token=services.catalog.api_tokens.create("old", Role.OPERATOR, created_by="bert")
    )
    assert token.api("GET", "/me").status == 401
    assert listed(anna)["old"]["refused"]
    logged_in(served, "bert")
    assert token.api("GET", "/me").status == 401
    assert listed(anna) == {}


def test_a_token_whose_account_was_never_recorded_keeps_its_role(
    served: tuple[Services, int],
) -> None:
    """Older releases recorded for a token made by a token only that one's name."""
    services, port = served
    anna = logged_in(served, "anna")
    tokens = services.catalog.api_tokens
    token = Client(port, token=tokens.create("old", Role.OPERATOR, created_by="token ci"))
    assert token.api("GET", "/me").document["role"] == "operator"
    assert not listed(anna)["old"]["refused"]
