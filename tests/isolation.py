"""Every request and frame that one user can make with another's ids, generated from the routes and frames there are.

Owns the values: whatever a route or frame takes must have one here, or the test that uses this fails. Each request is
made twice, with the other user's things and with things that never were: a client must not be able to tell the two
apart.
"""

from __future__ import annotations

import inspect
import itertools
import re
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from fastapi.params import Query
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from contracts.frames import ClientFrame
from contracts.keys import key_text
from services.gateway.api.guards import SAFE_METHODS
from services.gateway.api.routes import Route
from tests.gateway_roads import MODEL

_PLACE = re.compile(r"{(\w+)}")


def _id() -> str:
    return str(uuid.uuid4())


@dataclass(frozen=True)
class Things:
    """What a request may name of another user; as it is made, of nobody. own: the asking user's own."""

    own_session: str
    own_turn: str
    cursor: str
    before: str
    position: int
    session: str = field(default_factory=_id)
    name: str = field(default_factory=_id)
    # Of another session of theirs: once the asking user has created one of this name, it names that.
    new_name: str = field(default_factory=_id)
    turn: str = field(default_factory=_id)
    running_turn: str = field(default_factory=_id)
    answer: str = field(default_factory=_id)
    event: str = field(default_factory=_id)
    data_hash: str = field(default_factory=lambda: uuid.uuid4().hex * 2)
    idempotency_key: str = field(default_factory=_id)
    key: str = key_text("zzzzzzzzzzzz", "A" * 43)

    def foreign(self, name: str, *, number: bool) -> list[Any]:
        """The values of an input that name something of the other user; empty: it can name nothing of anybody."""
        named: dict[str, list[Any]] = {
            "session": [self.session, self.session.upper(), f"name:{self.name}"],
            "turn": [self.turn, self.running_turn],
            "name": [self.new_name],
            "after": [self.position if number else self.cursor],
            "before": [self.before],
            "event_id": [self.event],
            "data_hash": [self.data_hash],
            "parent_id": [self.answer],
            "client_message_id": [self.idempotency_key],
            "Idempotency-Key": [self.idempotency_key],
            "Last-Event-ID": [self.cursor],
            "key": [self.key],
        }
        return named.get(name, [])

    def own(self, name: str) -> list[str]:
        return {"session": [self.own_session], "turn": [self.own_turn]}.get(name, [])


# Inputs that name nothing: their values are right, so that nothing is refused because of them.
PLAIN: Mapping[str, Any] = {
    "limit": 2,
    "at": "1",
    "wait": "answer",
    "text": "hello",
    "title": "mine",
    "model": MODEL,
    "system": "Be brief.",
    "options": {"seed": 1},
    "on_busy": "queue",
}


@dataclass(frozen=True)
class Asked:
    """One request. path has its values; sent is all of it as text, to tell an echo from a leak."""

    method: str
    path: str
    named: bool
    query: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    body: dict[str, Any] | None = None

    @property
    def sent(self) -> str:
        return repr((self.path, self.query, self.headers, self.body)).lower()


def requests_of(route: Route, things: Things) -> Iterator[Asked]:
    """Every request of a route that names something of theirs; all of a route that names nothing."""
    in_path = _PLACE.findall(route.path)
    signature = inspect.signature(route.endpoint, eval_str=True).parameters
    in_query = [
        name
        for name, each in signature.items()
        if name not in in_path and any(isinstance(part, Query) for part in get_args(each.annotation))
    ]
    streams = [{"Accept": "text/event-stream"}] if route.streams else []
    for values in itertools.product(*(_values(name, things) for name in in_path)):
        path = route.path
        for name, (value, _) in zip(in_path, values, strict=True):
            path = path.replace(f"{{{name}}}", value)
        for more, accept in itertools.product((False, True), [{}, *streams]):
            query = {name: _first(name, things, str(signature[name].annotation)) for name in in_query} if more else {}
            body = None if route.body is None else _filled(route.body, things, more=more)
            headers = {**accept, **(_headers(route, things) if more else {})}
            named = any(foreign for _, foreign in values) or (more and bool(in_path))
            if named or not in_path:
                yield Asked(route.method, path, bool(in_path), query, headers, body)


def frames_of(things: Things) -> Iterator[dict[str, Any]]:
    """Every frame that a client may send, and that names something of theirs."""
    for shape in get_args(ClientFrame):
        kind = get_args(shape.model_fields["type"].annotation)[0]
        named = [name for name in shape.model_fields if things.own(name)]
        for values in itertools.product(*(_values(name, things) for name in named)):
            for more in (False, True):
                fields = {name: value for name, (value, _) in zip(named, values, strict=True)}
                frame = {"type": kind, **_filled(shape, things, more=more, without=("type", *named)), **fields}
                foreign = any(foreign for _, foreign in values) or _names_foreign(frame, things)
                if foreign or not named:
                    yield frame


def _values(name: str, things: Things) -> list[tuple[Any, bool]]:
    """(value, whether it is theirs)"""
    found = [(value, True) for value in things.foreign(name, number=False)]
    found += [(value, False) for value in things.own(name)]
    assert found, f"{name}: which values can it have? tests/isolation.py must know"
    return found


def _first(name: str, things: Things, annotation: str) -> Any:
    found = things.foreign(name, number="int" in annotation)
    assert found or name in PLAIN, f"{name}: which values can it have? tests/isolation.py must know"
    return found[0] if found else PLAIN[name]


def _filled(shape: type[BaseModel], things: Things, *, more: bool, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """Every required field, with more every other one too."""
    fields: dict[str, FieldInfo] = {name: each for name, each in shape.model_fields.items() if name not in without}
    return {
        name: _first(name, things, str(each.annotation)) for name, each in fields.items() if more or each.is_required()
    }


def _headers(route: Route, things: Things) -> dict[str, str]:
    name = "Last-Event-ID" if route.method in SAFE_METHODS else "Idempotency-Key"
    return {name: str(_first(name, things, ""))}


def _names_foreign(frame: Mapping[str, Any], things: Things) -> bool:
    return any(value in things.foreign(name, number=False) for name, value in frame.items())


_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE)


def masked(text: str) -> str:
    """An answer without its ids and numbers: what is left tells what a client could learn."""
    return re.sub(r"\d+", "0", _UUID.sub("<id>", text))
