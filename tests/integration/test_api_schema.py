"""What the served OpenAPI document promises, tried with requests made from it.

schemathesis makes requests that fit the document and requests that do not. No answer may be a 5xx,
but for 502 with its code where something behind the appliance cannot be reached; each has a status,
a content type and a body that the document names; each error has the form of errors.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.core.failures import FailureGroup
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi import checks

from appliance.api.app import PREFIX
from appliance.api.errors import OTHERWISE
from appliance.api.gate import Gate
from appliance.api.openapi import openapi_document
from appliance.api.routes import ROUTES
from appliance.api.services import Services
from appliance.catalog.accounts import Role
from tests.support.api_server import api_serving, make_token

_EXAMPLES = 3  # of each operation and mode
_NEVER_CALLED = {
    "setup",  # these two are slow on purpose, and limited
    "log_in",
    "stream_events",  # has no end
}
_CHECKS = [
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.status_code_conformance,
]
SCHEMA = schemathesis.openapi.from_dict(openapi_document(ROUTES, PREFIX))
OPERATIONS = {
    found.ok().definition.raw["operationId"]: found.ok() for found in SCHEMA.get_all_operations()
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Services, int]]:
    with (
        pytest.MonkeyPatch.context() as patch,
        api_serving(tmp_path_factory.mktemp("home")) as (services, port),
    ):
        patch.setattr(Gate, "count", lambda *_, **__: None)  # the limit is for attackers
        yield services, port


@pytest.fixture(scope="module")
def session(served: tuple[Services, int]) -> Iterator[requests.Session]:
    services, _ = served
    token = make_token(services.catalog, "fuzz", Role.ADMINISTRATOR)
    with requests.Session() as session:
        session.headers["Authorization"] = f"Bearer {token}"
        yield session


@pytest.mark.parametrize("mode", list(GenerationMode), ids=str)
@pytest.mark.parametrize("name", sorted(set(OPERATIONS) - _NEVER_CALLED))
def test_every_answer_is_as_the_document_says(
    served: tuple[Services, int], session: requests.Session, name: str, mode: GenerationMode
) -> None:
    """For requests that fit it, and for those that do not."""
    operation = OPERATIONS[name]
    services, port = served
    base = f"https://127.0.0.1:{port}"

    @settings(
        max_examples=_EXAMPLES,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(data=st.data())
    def tried(data: st.DataObject) -> None:
        case: Any = data.draw(operation.as_strategy(generation_mode=mode))
        response = case.call(
            base_url=base,
            session=session,
            verify=str(services.repository_path.parent / "tls/cert.pem"),
        )
        answer = response.json() if response.content else None
        if response.status_code >= 400:
            assert {"code", "error", "retryable"} <= set(answer), answer
        assert response.status_code < 500 or response.status_code == OTHERWISE, (
            f"{case.method} {case.formatted_path}: {response.status_code} {answer}"
        )
        try:
            case.validate_response(response, checks=_CHECKS)
        except FailureGroup as failures:
            shown = "\n".join(str(each) for each in failures.exceptions)
            raise AssertionError(f"{case.method} {case.formatted_path}\n{shown}") from failures

    try:
        tried()
    except Exception as error:
        if type(error).__name__ == "Unsatisfiable":
            return  # nothing can be wrong with a request that has no part to be wrong
        raise


def test_every_route_is_an_operation_of_the_document() -> None:
    """Nothing is left out of the trial by not being named."""
    assert set(OPERATIONS) == {route.handler.__name__ for route in ROUTES}
    json.dumps(openapi_document(ROUTES, PREFIX))
