"""ChatGPT's conversations.json: what of a conversation becomes messages of a session, and what is left out.

Owns the reading of its tree: a text that a person or the model said keeps its id, its place among branches and its
time; nodes without one (system prompts, tools, hidden ones, pictures) are passed over, and what hung on them hangs on
the next message above. Old and new shapes are met; anything may be missing. Must never do I/O.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from contracts import ids
from contracts.base import time_text, without_surrogates
from contracts.events import ImportedMessage

SOURCE: Literal["chatgpt"] = "chatgpt"
# A text that is larger than a whole event should be is left out, and counted.
TEXT_BYTES = 512 * 1024
_TITLE_CHARS = 200
_MODEL_CHARS = 200
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_ROLES: tuple[Literal["user", "assistant"], ...] = ("user", "assistant")
_SAID = ("text", "multimodal_text")


@dataclass
class Conversation:
    """A conversation as an import takes it: parents before their children. left_out: how many nodes, by the reason."""

    session_id: str
    title: str | None
    messages: list[ImportedMessage] = field(default_factory=list)
    head: str | None = None
    left_out: Counter[str] = field(default_factory=Counter)


class NotAConversation(Exception):
    """The text says what it lacks."""


def read_conversation(value: Any) -> Conversation:
    """Raises NotAConversation."""
    if not isinstance(value, dict) or not isinstance(value.get("mapping"), dict):
        raise NotAConversation("no mapping of messages")
    name = value.get("conversation_id") or value.get("id")
    if not isinstance(name, str):
        raise NotAConversation("no conversation_id")
    title = value.get("title")
    found = Conversation(_id(name), _line(title, _TITLE_CHARS) if isinstance(title, str) else None)
    above: dict[str, str | None] = {}  # the message that each node is, or hangs on
    for name, node in _in_order(value["mapping"]):
        parent = above.get(str(node.get("parent")))
        message = _message(name, node, parent, found.left_out)
        above[name] = message.message_id if message else parent
        if message:
            found.messages.append(message)
    current = above.get(str(value.get("current_node")))
    found.head = current or (found.messages[-1].message_id if found.messages else None)
    return found


def _in_order(mapping: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Every node that hangs on a root, parents first, else as the file has them. A ring of nodes hangs on none."""
    nodes = {name: node for name, node in mapping.items() if isinstance(node, dict)}
    children: dict[str | None, list[str]] = {}
    for name, node in nodes.items():
        parent = node.get("parent")
        children.setdefault(parent if isinstance(parent, str) and parent in nodes else None, []).append(name)
    ordered: list[tuple[str, dict[str, Any]]] = []
    waiting = children.get(None, [])[::-1]
    while waiting:
        name = waiting.pop()
        ordered.append((name, nodes[name]))
        waiting += children.get(name, [])[::-1]
    return ordered


def _message(name: str, node: dict[str, Any], parent: str | None, left_out: Counter[str]) -> ImportedMessage | None:
    """None: nobody said a text there; the reason is counted, but for the tree's empty root."""
    message = node.get("message")
    if not isinstance(message, dict):
        return None
    author = _part(message, "author").get("role")
    role = next((each for each in _ROLES if each == author), None)
    text, reason = _text_of(message) if role else ("", "system" if author == "system" else "tool")
    if role is None or reason is not None:
        left_out[reason or "tool"] += 1
        return None
    model = _part(message, "metadata").get("model_slug")
    return ImportedMessage(
        message_id=_id(name),
        parent_id=parent,
        role=role,
        text=text,
        created_at=_time(message.get("create_time")),
        model=_line(model, _MODEL_CHARS) if role == "assistant" and isinstance(model, str) else None,
    )


def _text_of(message: dict[str, Any]) -> tuple[str, str | None]:
    """(the text, None), or why there is none."""
    content, metadata = _part(message, "content"), _part(message, "metadata")
    if metadata.get("is_visually_hidden_from_conversation") or message.get("weight") == 0:
        return "", "hidden"
    if content.get("content_type") not in _SAID or message.get("recipient", "all") not in ("all", None):
        return "", "tool"
    parts = content.get("parts")
    parts = parts if isinstance(parts, list) else [content.get("text")]
    texts = [part if isinstance(part, str) else part.get("text") for part in parts if isinstance(part, str | dict)]
    text = without_surrogates("\n".join(each for each in texts if isinstance(each, str) and each))
    if not text.strip():
        return "", "picture" if any(isinstance(part, dict) for part in parts) else "empty"
    return (text, None) if len(text.encode()) <= TEXT_BYTES else ("", "too_long")


def _part(message: dict[str, Any], name: str) -> dict[str, Any]:
    part = message.get(name)
    return part if isinstance(part, dict) else {}


def _id(name: str) -> str:
    """The same id where it is a UUID, else one that is made from it."""
    plain = name.lower()
    return plain if _UUID.fullmatch(plain) else ids.imported_id_of(SOURCE, without_surrogates(name))


def _line(text: str, longest: int) -> str | None:
    return " ".join(without_surrogates(text).split())[:longest] or None


def _time(value: Any) -> str | None:
    """Seconds since 1970, as old and new files have them."""
    if not isinstance(value, int | float):
        return None
    try:
        return time_text(datetime.fromtimestamp(value, UTC))
    except (ValueError, OverflowError, OSError):
        return None
