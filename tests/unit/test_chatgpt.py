"""ChatGPT's conversations.json, old and new, as sessions: what is kept, what is left out, and nothing comes twice."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from contracts import ids
from contracts.imports import ImportConversationQuery, ImportReply
from services.history.effects import Queue
from services.history.importing import Importing
from services.operator import json_array, sending
from services.operator.chatgpt import Conversation, NotAConversation, read_conversation
from services.operator.json_array import NotAnArray, array_items
from services.operator.sending import message_parts
from tests.conversing import USER, completed, make_event, message, new_id, session_started
from tests.recording import Scene, scene

CONVERSATION = "6746f0a1-1111-8000-9000-000000000001"
USERS_OWN = {"role": "user"}
SPOKEN = {"content_type": "audio_transcription", "text": "A cat."}
NEW = {name: f"0000000{n}-aaaa-4aaa-8aaa-aaaaaaaaaaaa" for n, name in enumerate(["q1", "a1", "q2", "a2", "q2b", "a2b"])}


def node(parent: str | None, role: str | None, *parts: Any, **more: Any) -> dict[str, Any]:
    """A node as the newer files have it. role None: the tree's empty root."""
    if role is None:
        return {"id": "x", "message": None, "parent": parent, "children": []}
    return {
        "id": "x",
        "parent": parent,
        "children": [],
        "message": {
            "id": "x",
            "author": {"role": role, "name": None, "metadata": {}},
            "create_time": 1700000000.5,
            "update_time": None,
            "content": {"content_type": "text", "parts": list(parts)},
            "status": "finished_successfully",
            "weight": 1.0,
            "metadata": {"model_slug": "gpt-4o"} if role == "assistant" else {},
            "recipient": "all",
            **more,
        },
    }


def conversation(**more: Any) -> dict[str, Any]:
    """Two turns, of which the second was edited and answered anew; the edit is the current one."""
    mapping = {
        "client-created-root": node(None, None),
        "5ee3a2c6-0000-4000-8000-000000000000": node("client-created-root", "system", "", weight=0.0),
        NEW["q1"]: node("5ee3a2c6-0000-4000-8000-000000000000", "user", "What is the capital of France?"),
        NEW["a1"]: node(NEW["q1"], "assistant", "Paris."),
        NEW["q2"]: node(NEW["a1"], "user", "And of Itly?"),
        NEW["a2"]: node(NEW["q2"], "assistant", "Did you mean Italy?"),
        NEW["q2b"]: node(NEW["a1"], "user", "And of Italy?"),
        NEW["a2b"]: node(NEW["q2b"], "assistant", "Rome."),
    }
    return {
        "title": "Capitals",
        "create_time": 1700000000.0,
        "mapping": mapping,
        "current_node": NEW["a2b"],
        "conversation_id": CONVERSATION,
        "id": CONVERSATION,
        **more,
    }


def texts(found: Conversation) -> list[tuple[str | None, str]]:
    """(the text it follows, its text) of each message."""
    by_id = {each.message_id: each.text for each in found.messages}
    return [(by_id[each.parent_id] if each.parent_id else None, each.text) for each in found.messages]


def test_the_tree_is_kept_with_its_branches_ids_times_and_models() -> None:
    found = read_conversation(conversation())
    assert (found.session_id, found.title, found.head) == (CONVERSATION, "Capitals", NEW["a2b"])
    assert texts(found) == [
        (None, "What is the capital of France?"),
        ("What is the capital of France?", "Paris."),
        ("Paris.", "And of Itly?"),
        ("And of Itly?", "Did you mean Italy?"),
        ("Paris.", "And of Italy?"),
        ("And of Italy?", "Rome."),
    ]
    first, second = found.messages[:2]
    assert (first.message_id, first.created_at, first.model) == (NEW["q1"], "2023-11-14T22:13:20.500Z", None)
    assert second.model == "gpt-4o"
    assert dict(found.left_out) == {"system": 1}


def test_what_nobody_said_is_passed_over_and_counted() -> None:
    """What hung on it hangs on the message above: an answer after a tool's follows the question."""
    mapping = {
        "r": node(None, "user", "Draw a cat."),
        "code": node("r", "assistant", "draw()", recipient="dalle.text2im"),
        "tool": node("code", "tool", "drawn"),
        "thoughts": node("tool", "assistant", content={"content_type": "thoughts", "thoughts": [{"content": "hm"}]}),
        "hidden": node("thoughts", "user", "be nice", metadata={"is_visually_hidden_from_conversation": True}),
        "empty": node("hidden", "assistant", ""),
        "picture": node("empty", "user", {"content_type": "image_asset_pointer", "asset_pointer": "x"}),
        "long": node("picture", "user", "x" * (512 * 1024 + 1)),
        "both": node(
            "long", "user", {"content_type": "image_asset_pointer"}, "What is this?",
            content={"content_type": "multimodal_text", "parts": [{"asset_pointer": "x"}, "What is this?"]},
        ),
        "spoken": node("both", "assistant", content={"content_type": "multimodal_text", "parts": [SPOKEN]}),
    }  # fmt: skip
    found = read_conversation(conversation(mapping=mapping, current_node="hidden"))
    assert texts(found) == [(None, "Draw a cat."), ("Draw a cat.", "What is this?"), ("What is this?", "A cat.")]
    assert dict(found.left_out) == {"tool": 3, "hidden": 1, "empty": 1, "picture": 1, "too_long": 1}
    assert found.head == found.messages[0].message_id, "the message that the current node hangs on"
    assert found.messages[0].message_id == ids.imported_id_of("chatgpt", "r"), "its name is no UUID"


@pytest.mark.parametrize(
    ("mapping", "kept"),
    [
        ({}, []),
        ({"a": None, "b": 7, "c": {}, "d": {"message": {}}}, []),
        (
            {"a": {"message": {"author": USERS_OWN, "content": {"content_type": "text", "parts": ["hi"]}}}},
            ["hi"],
        ),
        ({"a": {"message": {"author": USERS_OWN, "content": {"content_type": "text", "text": "hi"}}}}, ["hi"]),
        ({"a": node("gone", "user", "orphan"), "b": node("c", "user", "x"), "c": node("b", "user", "y")}, ["orphan"]),
        ({"a": node(None, "user", "a\ud800b", create_time="soon")}, ["a\ufffdb"]),
        ({"a": node(None, "user", "hi", create_time=1e300)}, ["hi"]),
        ({"a": node(None, "assistant", "hi", metadata=None, recipient=None, weight=None)}, ["hi"]),
    ],
)
@pytest.mark.parametrize("more", [{}, {"current_node": None, "title": None, "conversation_id": None}])
def test_whatever_is_missing_the_rest_is_read(mapping: dict[str, Any], kept: list[str], more: dict[str, Any]) -> None:
    """Old files, nulls, orphans, rings, times that are none, a current node that is not there."""
    found = read_conversation(conversation(mapping=mapping, **more))
    assert found.session_id == CONVERSATION
    assert [each.text for each in found.messages] == kept
    assert found.head == (found.messages[-1].message_id if kept else None)
    assert all(each.created_at is None or each.created_at[:4] == "2023" for each in found.messages)


@pytest.mark.parametrize(
    "value", [None, [], "x", {}, {"mapping": {}}, {"mapping": [], "id": "x"}, {"mapping": {}, "id": 7}]
)
def test_what_is_no_conversation_says_so(value: Any) -> None:
    with pytest.raises(NotAConversation):
        read_conversation(value)


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["message", "parent", "author", "role", "content", "parts"]), inner),
        max_leaves=12,
    )
)  # fmt: skip
@example({"author": {"role": []}})
def test_no_node_is_a_surprise(odd: Any) -> None:
    found = read_conversation(conversation(mapping={"a": node(None, "user", "hi"), "b": odd, "c": {"message": odd}}))
    assert "hi" in [each.text for each in found.messages]


class Dribble(io.BytesIO):
    """A file that gives one byte at a time."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(1)


@pytest.mark.parametrize("kind", [io.BytesIO, Dribble])
def test_an_array_is_read_item_by_item(kind: type[io.BytesIO]) -> None:
    items = [{"a": ']},{"ü\\'}, {"b": [1, {"c": None}]}, {}]
    assert list(array_items(kind(b"\xef\xbb\xbf" + json.dumps(items, ensure_ascii=False, indent=1).encode()))) == items
    assert list(array_items(kind(b" [ ] "))) == []


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "line 1: not a JSON array"),
        (b'{"mapping": {}}', "line 1: not a JSON array"),
        (b'[{"a": 1},\n {"b": 2', "line 2: no JSON, or the file was cut"),
        (b'[{"a": 1}\n', "line 2: the file ends in the middle"),
        (b'[{"a": 1}\n{"b": 2}]', "line 2: not a JSON array"),
        (b'[{"a": 1},\n\n{"b": nope}]', "line 3: no JSON"),
        (b"[\n" + b"[" * 100_000, "line 2: nested too deep"),
        (b'[{"a": "\xff"}]', "not UTF-8"),
    ],
)
def test_what_is_no_array_is_named_by_its_line(raw: bytes, said: str) -> None:
    with pytest.raises(NotAnArray, match=said):
        list(array_items(io.BytesIO(raw)))


def test_an_item_that_would_fill_the_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_array, "ITEM_CHARS", 1000)
    monkeypatch.setattr(json_array, "_PIECE_BYTES", 100)
    stream = io.BytesIO(b'[{"a": "' + b"x" * 10**6)
    with pytest.raises(NotAnArray, match="more than 1000 characters"):
        list(array_items(stream))
    assert stream.tell() < 10_000, "it is not read to its end"


@pytest.fixture
def on(tmp_path: Path) -> Iterator[Scene]:
    with scene(tmp_path) as made:
        yield made


def brought(on: Scene, value: dict[str, Any], user_id: str = USER) -> list[ImportReply]:
    """As `chatlog import` does, part by part, until one is refused."""
    found = read_conversation(value)
    parts = list(message_parts(found.messages))
    replies: list[ImportReply] = []
    for number, part in enumerate(parts, 1):
        query = ImportConversationQuery(
            user_id=user_id, session_id=found.session_id, by="a test", source="chatgpt", title=found.title,
            messages=part, head=found.head if number == len(parts) else None,
        )  # fmt: skip
        replies.append(on.do(partial(Importing.conversation, query=query)))
        if replies[-1].status == "refused":
            break
    return replies


def contents(effect: Queue) -> list[str]:
    return [each["content"] for each in json.loads(effect.payload)["messages"]]


def asked(on: Scene, text: str, session_id: str = CONVERSATION, **data: Any) -> list[str]:
    """What the model is shown for a message of this text."""
    said = message(session_id, text, **data)
    on.take(said)
    [queued] = on.of(Queue)
    again = [contents(each) for each in on.requeue() if each.turn_id == said.turn_id]
    assert again == [contents(queued)], "and when it is queued again"
    on.claim(said, new_id())
    on.take(completed(session_id, str(said.turn_id), text=f"answer to {text}"))
    return contents(queued)


PATH = ["What is the capital of France?", "Paris.", "And of Italy?", "Rome."]


@pytest.mark.parametrize("part_bytes", [10**6, 1])
def test_chatting_goes_on_from_the_imported_head(on: Scene, monkeypatch: pytest.MonkeyPatch, part_bytes: int) -> None:
    """In one event or in many: with the texts of the current path, and of another one where that is asked for."""
    monkeypatch.setattr(sending, "PART_BYTES", part_bytes)
    assert {reply.status for reply in brought(on, conversation())} == {"imported"}
    assert on.types(CONVERSATION) == ["session_started"] + ["session_imported"] * (1 if part_bytes > 1 else 6)
    assert asked(on, "And of Spain?") == [*PATH, "And of Spain?"]
    on.reopen()
    assert asked(on, "Why?") == [*PATH, "And of Spain?", "answer to And of Spain?", "Why?"]
    assert asked(on, "Yes.", parent_id=NEW["a2"]) == [*PATH[:2], "And of Itly?", "Did you mean Italy?", "Yes."]


def test_importing_twice_changes_nothing(on: Scene) -> None:
    brought(on, conversation())
    before = on.sql("SELECT * FROM events")
    assert [reply.status for reply in brought(on, conversation())] == ["unchanged"]
    asked(on, "And of Spain?")
    assert [reply.status for reply in brought(on, conversation(title="Renamed", current_node=NEW["a2"]))] == [
        "unchanged"
    ]
    assert on.sql("SELECT * FROM events")[: len(before)] == before


def newer() -> dict[str, Any]:
    grown = conversation(current_node="0000000f-aaaa-4aaa-8aaa-aaaaaaaaaaaa")
    grown["mapping"]["0000000f-aaaa-4aaa-8aaa-aaaaaaaaaaaa"] = node(NEW["a2b"], "user", "Thanks!")
    return grown


def test_a_newer_file_adds_what_is_new_and_moves_the_head(on: Scene) -> None:
    brought(on, conversation())
    assert [reply.status for reply in brought(on, newer())] == ["imported"]
    [(body,)] = on.sql("SELECT body FROM events WHERE version = 3 AND session_id = ?", CONVERSATION)
    assert [each["text"] for each in json.loads(body)["data"]["messages"]] == ["Thanks!"]
    assert asked(on, "Bye.") == [*PATH, "Thanks!", "Bye."]


def test_a_newer_file_leaves_the_head_to_who_has_gone_on_here(on: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    brought(on, conversation())
    asked(on, "And of Spain?")
    monkeypatch.setattr(sending, "PART_BYTES", 1)
    assert "imported" in [reply.status for reply in brought(on, newer())]
    assert asked(on, "Why?") == [*PATH, "And of Spain?", "answer to And of Spain?", "Why?"]


def test_the_current_path_alone_may_move(on: Scene) -> None:
    brought(on, conversation())
    assert [reply.status for reply in brought(on, conversation(current_node=NEW["a2"]))] == ["imported"]
    assert [reply.status for reply in brought(on, conversation(current_node=NEW["a2b"]))] == ["imported"]
    assert asked(on, "And of Spain?")[:-1] == PATH


def test_two_users_with_the_same_file_do_not_meet(on: Scene) -> None:
    for user in (USER, "eve"):
        assert [reply.status for reply in brought(on, conversation(), user)] == ["imported"]
    before = on.rows("eve", CONVERSATION)
    asked(on, "And of Spain?")
    assert on.rows("eve", CONVERSATION) == before


def test_a_session_that_was_not_imported_is_left_alone(on: Scene) -> None:
    """Its user's own, of the same id: nothing is added to it."""
    on.take(session_started(CONVERSATION))
    assert [(reply.status, reply.code) for reply in brought(on, conversation())] == [("refused", "conflict")]
    assert on.types(CONVERSATION) == ["session_started"]


def test_a_conversation_that_its_user_deleted_stays_deleted(on: Scene) -> None:
    brought(on, conversation())
    on.take(make_event("session_deleted", CONVERSATION, {}))
    assert [(reply.status, reply.code) for reply in brought(on, newer())] == [("refused", "session_deleted")]
    on.take(make_event("session_restored", CONVERSATION, {}))
    assert [reply.status for reply in brought(on, newer())] == ["imported"]
    assert asked(on, "Bye.") == [*PATH, "Thanks!", "Bye."]


@pytest.mark.parametrize(
    "change",
    [
        lambda query: query.model_copy(update={"head": new_id()}),
        lambda query: query.model_copy(update={"messages": query.messages[1:]}),
        lambda query: query.model_copy(update={"messages": query.messages + query.messages[:1]}),
    ],
)
def test_history_takes_no_tree_that_is_none(
    on: Scene, change: Callable[[ImportConversationQuery], ImportConversationQuery]
) -> None:
    """A head or a parent that is not there, a message twice: nothing of the part, not even its session."""
    found = read_conversation(conversation())
    query = ImportConversationQuery(
        user_id=USER, session_id=CONVERSATION, by="a test", source="chatgpt", title=None, messages=found.messages,
        head=found.head,
    )  # fmt: skip
    assert on.do(partial(Importing.conversation, query=change(query))).code == "unreadable"
    assert on.types(CONVERSATION) == []
    assert on.do(partial(Importing.conversation, query=query)).status == "imported"
