"""The lab's REST interface: sessions and tags, in the current and the legacy form."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import pytest

from lab.data_plane.rest import RestApi, RestForm, RestReply, RestRequest
from lab.data_plane.rest_tagging import Tagging
from lab.data_plane.tags import TaggedObject, Tags

FORMS = list(RestForm)


@dataclass
class Sessions:
    living: set[str] = field(default_factory=set)

    def begin(self, user: str, password: str) -> str | None:
        if password != "right":
            return None
        self.living.add("s1")
        return "s1"

    def user_of(self, session_id: str) -> str | None:
        return "admin" if session_id in self.living else None

    def end(self, session_id: str) -> None:
        self.living.discard(session_id)


@dataclass
class Inventory:
    hidden: set[str] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)

    def visible(self, user: str, thing: TaggedObject) -> bool:
        return thing.id not in self.hidden

    def allows(self, user: str, privilege: str, entity: str) -> bool:
        return privilege not in self.refused


class Client:
    """Speaks one form, so that a test reads the same for both."""

    def __init__(self, form: RestForm) -> None:
        self.form, self.inventory, self.session = form, Inventory(), "s1"
        sessions = Sessions({"s1"})
        operations = Tagging(self.inventory, Tags()).operations()
        self.api = RestApi(sessions, operations, frozenset({form}))

    def send(
        self,
        method: str,
        path: str,
        document: Any = None,
        *,
        action: str | None = None,
        credentials: tuple[str, str] | None = None,
        session: bool = True,
    ) -> RestReply:
        name = "action" if self.form is RestForm.CURRENT else "~action"
        return self.api.answer(
            RestRequest(
                method=method,
                path=f"{self.form}/{path}",
                query={name: action} if action else {},
                session_id=self.session if session else None,
                credentials=credentials,
                body=b"" if document is None else json.dumps(document).encode(),
            )
        )

    def value(self, *args: Any, **kwargs: Any) -> Any:
        reply = self.send(*args, **kwargs)
        assert reply.status < 300, reply.document
        if self.form is RestForm.LEGACY and reply.document is not None:
            return reply.document["value"]
        return reply.document

    def create(self, kind: str, fields: dict[str, Any]) -> str:
        wrapped = fields if self.form is RestForm.CURRENT else {"create_spec": fields}
        return str(self.value("POST", f"cis/tagging/{kind}", wrapped))

    def category(self, name: str = "tier", cardinality: str = "SINGLE") -> str:
        fields = {"name": name, "description": "", "cardinality": cardinality}
        return self.create("category", {**fields, "associable_types": ["VirtualMachine"]})

    def tag(self, category: str, name: str) -> str:
        return self.create("tag", {"category_id": category, "name": name, "description": "d"})

    def on(self, kind: str, tag_id: str) -> str:
        return f"cis/tagging/{kind}/{'' if self.form is RestForm.CURRENT else 'id:'}{tag_id}"

    def attach(self, tag_id: str, moid: str, type_name: str = "VirtualMachine") -> RestReply:
        body = {"object_id": {"type": type_name, "id": moid}}
        return self.send("POST", self.on("tag-association", tag_id), body, action="attach")


@pytest.fixture(params=FORMS)
def client(request: pytest.FixtureRequest) -> Client:
    return Client(request.param)


@pytest.mark.parametrize("form", FORMS)
def test_a_session_is_begun_used_and_ended(form: RestForm) -> None:
    """A login answers the session's id; without one everything is 401."""
    client = Client(form)
    path = "session" if form is RestForm.CURRENT else "cis/session"
    refused = client.send("POST", path, credentials=("admin", "wrong"), session=False)
    assert refused.status == 401
    assert client.value("POST", path, credentials=("admin", "right"), session=False) == "s1"
    assert client.value("GET", path)["user"] == "admin"
    assert client.send("GET", "cis/tagging/tag", session=False).status == 401
    assert client.send("DELETE", path).status in (200, 204)
    assert client.send("GET", "cis/tagging/tag").status == 401


def test_only_the_forms_that_exist_answer() -> None:
    """An old vCenter knows no /api, so a client must try the other."""
    client = Client(RestForm.LEGACY)
    client.form = RestForm.CURRENT
    assert client.send("POST", "session", credentials=("admin", "right")).status == 404


def test_tags_are_attached_and_listed(client: Client) -> None:
    """The call a backup uses, and those around it."""
    category = client.category(cardinality="MULTIPLE")
    gold, web = client.tag(category, "gold"), client.tag(category, "web")
    for tag_id, moid in ((gold, "vm-1"), (web, "vm-1"), (web, "vm-2"), (gold, "vm-3")):
        assert client.attach(tag_id, moid).status in (200, 204)
    things = [{"type": "VirtualMachine", "id": f"vm-{n}"} for n in (1, 2, 3, 4)]
    client.inventory.hidden = {"vm-3"}
    path, action = "cis/tagging/tag-association", "list-attached-tags-on-objects"
    found = client.value("POST", path, {"object_ids": things}, action=action)
    assert {row["object_id"]["id"]: set(row["tag_ids"]) for row in found} == {
        "vm-1": {gold, web},
        "vm-2": {web},
    }
    assert set(client.value("GET", "cis/tagging/tag")) == {gold, web}
    document = client.value("GET", client.on("tag", gold))
    assert (document["name"], document["category_id"]) == ("gold", category)
    document = client.value("GET", client.on("category", category))
    assert (document["name"], document["cardinality"]) == ("tier", "MULTIPLE")
    objects = client.value(
        "POST", client.on("tag-association", web), action="list-attached-objects"
    )
    assert [row["id"] for row in objects] == ["vm-1", "vm-2"]


def test_what_the_model_forbids_is_refused(client: Client) -> None:
    """Double names, wrong types, a second tag of a single-cardinality category."""
    category = client.category()
    gold, silver = client.tag(category, "gold"), client.tag(category, "silver")
    fields = {"category_id": category, "name": "gold", "description": ""}
    wrapped = fields if client.form is RestForm.CURRENT else {"create_spec": fields}
    assert client.send("POST", "cis/tagging/tag", wrapped).status == 400
    assert client.attach(gold, "vm-1").status in (200, 204)
    assert client.attach(gold, "vm-1").status in (200, 204)
    assert client.attach(silver, "vm-1").status == 400
    assert client.attach(gold, "group-1", "Folder").status == 400
    assert client.attach("urn:none", "vm-1").status == 404
    assert client.send("GET", client.on("tag", "urn:none")).status == 404
    assert client.send("GET", "cis/tagging/none").status == 404
    assert client.send("POST", "cis/tagging/tag", [1]).status == 400
    assert client.send("POST", "cis/tagging/tag", {"name": 5}).status == 400


def test_privileges_are_enforced(client: Client) -> None:
    """Who may not attach does not; what he cannot see he cannot tag."""
    tag_id = client.tag(client.category(), "gold")
    client.inventory.refused = {"InventoryService.Tagging.AttachTag"}
    assert client.attach(tag_id, "vm-1").status == 403
    client.inventory.refused = set()
    client.inventory.hidden = {"vm-1"}
    assert client.attach(tag_id, "vm-1").status == 403
    assert client.attach(tag_id, "vm-2").status in (200, 204)


def test_what_is_deleted_is_detached(client: Client) -> None:
    """Tags go with their category, associations with their tag and their object."""
    tags = Tags()
    category = tags.create_category("a")
    tag, thing = tags.create_tag(category.id, "x"), TaggedObject("VirtualMachine", "vm-1")
    tags.attach(tag.id, thing)
    tags.forget_object("vm-1")
    assert tags.of_object(thing) == []
    tags.attach(tag.id, thing)
    tags.delete_category(category.id)
    assert (tags.of_object(thing), tags.tags()) == ([], [])
