"""Beside the road, history/tools (core): a session as a page of Markdown, for people and their archives.

Owns the look: title, then the messages of the current path; where something was said in other ways too, how many. Must
never let a text become part of the page's own structure: each stands in a fence that it cannot close, so that HTML and
Markdown in it are shown as they were typed.
"""

from __future__ import annotations

import re

from services.history.views.fold import Row

_SHORTEST_FENCE = 3
# But the colon: it does nothing beside escaped brackets, slashes and at signs, and every model's name has one.
_PUNCTUATION = re.compile(r"([!-/;-@\[-`{-~])")


def page(session: Row, messages: list[Row]) -> str:
    """The session's chapter."""
    by_id = {str(message["message_id"]): message for message in messages}
    siblings: dict[str | None, int] = {}
    for message in messages:
        parent = _text(message["parent_id"])
        siblings[parent] = siblings.get(parent, 0) + 1
    path = _path(by_id, _text(session["head"]))
    said = [_message(message, siblings[_text(message["parent_id"])] - 1) for message in path]
    elsewhere = len(messages) - len(path)
    about = [f"- session `{session['session_id']}`, begun {_day(session)}", f"- {len(path)} messages"]
    if elsewhere:
        about.append(f"- {elsewhere} more in other branches, which are not on this page")
    return "\n".join([f"# {_inline(session['title'] or session['name'] or 'Untitled')}", "", *about, "", *said, ""])


def _path(by_id: dict[str, Row], head: str | None) -> list[Row]:
    """From the root to the head."""
    path: list[Row] = []
    while head is not None:
        path.append(by_id[head])
        head = _text(by_id[head]["parent_id"])
    return path[::-1]


def _message(message: Row, others: int) -> str:
    who = "User" if message["role"] == "user" else _inline(message["model"] or "Assistant")
    state = "" if message["status"] in ("recorded", "completed") else f", {message['status']}"
    code = f" ({message['code']})" if message["status"] == "failed" else ""
    lines = [f"## {who}, {_day(message)}{state}{code}", ""]
    if others:
        lines += [f"*Said in {others + 1} ways; this one is on the current path.*", ""]
    return "\n".join([*lines, *(_fenced(label, text) for label, text in _texts(message))])


def _texts(message: Row) -> list[tuple[str, str]]:
    thinking, text = _text(message["thinking"]), str(message["text"])
    return [*([("thinking", thinking)] if thinking else []), *([("text", text)] if text else [])]


def _fenced(label: str, text: str) -> str:
    """A fence longer than any run of backticks in the text: nothing in it can end it."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(longest + 1, _SHORTEST_FENCE)
    return f"{fence}{label}\n{text}\n{fence}\n"


def _inline(value: object) -> str:
    """A title or name on one line, with nothing in it that Markdown or HTML would take for its own."""
    return _PUNCTUATION.sub(r"\\\1", " ".join(str(value).split()))


def _day(row: Row) -> str:
    """To the minute, UTC."""
    return str(row["created_at"])[:16].replace("T", " ")


def _text(value: object) -> str | None:
    return None if value is None else str(value)
