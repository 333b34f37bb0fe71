"""Keys: their form, the one place that finds them, and the one answer to whatever is wrong with them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.base import dump
from contracts.errors import ContractError
from contracts.keys import (
    KeyRecord,
    Scope,
    digest_of,
    holds_key,
    key_id_of,
    key_text,
    read_key_record,
)
from services.gateway.auth import LOCAL, Auth
from services.gateway.intake import Refused

NOW = "2026-11-20T10:00:00.000Z"
ID = "abcdef012345"
# Fixed, so that every process of a parallel run collects the same tests.
KEY = key_text(ID, "k" * 43)
OTHER = key_text(ID, "o" * 43)


def record(**changes: Any) -> KeyRecord:
    fields: dict[str, Any] = {
        "key_id": ID,
        "user_id": "ann",
        "name": "",
        "scopes": ["chat"],
        "digest": digest_of(KEY),
        "created_at": "2026-11-19T10:00:00.000Z",
        "expires_at": None,
        "revoked_at": None,
    }
    return KeyRecord(**{**fields, **changes})


def auth(*records: KeyRecord) -> Auth:
    return Auth({each.key_id: each for each in records}.get, lambda: NOW)


def carrier(
    *authorization: str, subprotocols: tuple[str, ...] = (), path: str = "/v1/x", query: str = ""
) -> dict[str, Any]:
    return {
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "headers": [(b"authorization", each.encode("latin-1")) for each in authorization],
        "subprotocols": list(subprotocols),
    }


def refusal(of: Auth, asked: dict[str, Any], needed: Scope = "read") -> str | None:
    """The code, and whatever else is said."""
    try:
        caller = of.caller_of(asked)
        if caller is not None:
            of.check(caller, needed)
    except Refused as refused:
        return refused.code + refused.detail
    return None


def test_a_key_says_what_it_is_and_whose_record_it_has() -> None:
    assert KEY.startswith("chatlog_")
    assert key_id_of(KEY) == ID
    assert len(KEY) == len("chatlog_") + 12 + 1 + 43 + 1 + 8


@given(st.integers(0, len(KEY) - 1), st.characters(codec="utf-8"))
def test_every_mistyped_character_is_seen_without_asking(at: int, wrong: str) -> None:
    mistyped = KEY[:at] + wrong + KEY[at + 1 :]
    assert (key_id_of(mistyped) == ID) == (mistyped == KEY)


@pytest.mark.parametrize(
    "text", ["", "chatlog_", KEY + "0", " " + KEY, KEY.upper(), KEY[:-9], KEY + "\n", "x" * 10_000]
)
def test_what_is_no_key_is_none(text: str) -> None:
    assert key_id_of(text) is None


def test_the_record_survives_its_bytes_and_holds_no_key() -> None:
    kept = dump(record())
    assert read_key_record(kept) == record()
    assert KEY.encode() not in kept
    assert KEY.encode()[21:64] not in kept
    with pytest.raises(ContractError):
        read_key_record(b'{"key_id":"abcdef012345"}')


def test_every_carrier_of_a_handshake_is_read_by_the_same_rule() -> None:
    of = auth(record())
    assert of.caller_with(KEY) == of.caller_of(carrier(f"Bearer {KEY}")) == of.caller_of(carrier(f"bearer  {KEY}"))
    assert of.caller_of(carrier(subprotocols=("chat.v1", f"chat.key.{KEY}"))) == of.caller_with(KEY)
    assert of.caller_of(carrier()) is None
    assert of.caller_of(carrier(subprotocols=("chat.v1",))) is None


@pytest.mark.parametrize(
    "asked",
    [
        carrier(f"Bearer {OTHER}"),
        carrier(f"Bearer {key_text('zzzzzz012345', 'A' * 43)}"),
        carrier("Bearer "),
        carrier("Bearer"),
        carrier(""),
        carrier(KEY + "x"),
        carrier(f"Basic {KEY}"),
        carrier(f"Bearer {KEY[:-1]}"),
        carrier(f"Bearer {KEY}, Bearer {KEY}"),
        carrier(f"Bearer {KEY}", f"Bearer {KEY}"),
        carrier(f"Bearer {KEY}", subprotocols=(f"chat.key.{KEY}",)),
        carrier(f"Bearer {KEY}'; DROP TABLE keys--\x00\xff"),
        carrier("Bearer " + "x" * 10_000_000),
        carrier(subprotocols=("chat.v1", "chat.key.")),
        carrier(f"Bearer {KEY}", query=f"key={KEY}"),
        carrier(query=f"access_token={KEY}"),
        carrier(f"Bearer {KEY}", query="key=" + KEY.replace("_", "%5f")),
        carrier(f"Bearer {KEY}", path=f"/v1/sessions/name:{KEY}"),
    ],
)
def test_whatever_is_wrong_is_one_answer(asked: dict[str, Any]) -> None:
    assert refusal(auth(record()), asked) == "unauthorized"


def test_expired_and_revoked_are_that_answer_too() -> None:
    asked = carrier(f"Bearer {KEY}")
    assert refusal(auth(record(expires_at="2026-11-20T10:00:00.001Z")), asked) is None
    assert refusal(auth(record(expires_at=NOW)), asked) == "unauthorized"
    assert refusal(auth(record(revoked_at="2026-11-20T09:00:00.000Z")), asked) == "unauthorized"
    assert refusal(auth(), asked) == "unauthorized"


def test_a_scope_bounds_what_a_caller_may() -> None:
    reading, chatting = auth(record(scopes=["read"])), auth(record())
    asked = carrier(f"Bearer {KEY}")
    assert refusal(reading, asked) is None
    assert refusal(reading, asked, "chat") == "forbidden"
    assert refusal(chatting, asked) is None
    assert refusal(chatting, asked, "chat") is None


def test_a_caller_lives_as_long_as_the_key() -> None:
    known = {ID: record(scopes=["read"])}
    of = Auth(known.get, lambda: NOW)
    caller = of.caller_with(KEY)
    assert of.is_live(caller)
    known[ID] = record(revoked_at=NOW)
    assert not of.is_live(caller)


def test_open_mode_has_one_user_and_asks_for_nothing() -> None:
    of = Auth(None)
    assert of.caller_of(carrier()) == of.caller_of(carrier("Bearer nonsense")) == of.caller_with("x") == LOCAL
    of.check(LOCAL, "chat")
    assert of.is_live(LOCAL)


def test_a_key_is_seen_wherever_it_is() -> None:
    assert holds_key(f"see {KEY[:-9]} here")
    assert not holds_key("/v1/sessions/name:chatlog_project")
