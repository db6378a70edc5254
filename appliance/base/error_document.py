"""An error as the operator sees it: code, message, whether to try again, and the next step."""

from __future__ import annotations

from typing import Any

from appliance.base.errors import ApplianceError


def next_step(error: ApplianceError) -> str:
    """The operator's text of an error: the docstring of its class."""
    return " ".join((type(error).__doc__ or "").split())


def error_document(error: ApplianceError) -> dict[str, Any]:
    return {
        "code": error.code,
        "message": str(error),
        "retryable": error.retryable,
        "next_step": next_step(error),
        "notes": list(getattr(error, "__notes__", ())),
    }
