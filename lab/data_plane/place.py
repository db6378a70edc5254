"""Where a request arrived, and the replies that every handler of the data plane shares."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus

from lab.vcenter.http_message import HttpReply, HttpRequest

VCENTER = "vcenter"
HTML = ("Content-Type", "text/html; charset=utf-8")


@dataclass(frozen=True, slots=True)
class Place:
    """Who answers: `VCENTER` or a host's name, and the `address:port` that clients connect to."""

    name: str
    authority: str

    @property
    def is_vcenter(self) -> bool:
        return self.name == VCENTER

    def url(self, request: HttpRequest) -> str:
        """The request as an absolute URL, its target byte for byte."""
        return f"https://{self.authority}{request.raw_target}"


class Refusal(Exception):
    """Ends a handler with an error; `reply` is its answer."""

    def __init__(self, status: HTTPStatus, what: str, *headers: tuple[str, str]) -> None:
        super().__init__(what)
        self.reply = error_page(status, what, *headers)


def error_page(status: HTTPStatus, what: str, *headers: tuple[str, str]) -> HttpReply:
    """An HTML page as hosts send; `what` must not hold markup from the client."""
    title = f"<html><head><title>{status.value} {status.phrase}</title></head>"
    body = f"{title}<body><h1>{status.phrase}</h1>{what}</body></html>"
    return HttpReply(status=status.value, headers=[HTML, *headers], body=body.encode())
