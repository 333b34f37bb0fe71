"""Step 7, history/context (core): which messages the model is shown for one turn, within a budget of tokens.

Owns the choice (system prompt, the last messages of the path that fit, what is left out) and the estimate behind it.
Must never do I/O: the texts of the chosen messages are read by the recorder and rendered here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from contracts.base import data_hash
from contracts.envelope import Event
from contracts.events import (
    AnswerCancelled,
    AnswerCompleted,
    Budget,
    ContextAssembled,
    LeftOut,
    SessionImported,
    UserMessageSubmitted,
)
from contracts.ids import seed_of
from services.history.session import Message, Session, Turn, wide_chars

# Characters per token: English text has about four, code and other scripts fewer. Three overestimates most texts a
# little, which costs a few old messages; an underestimate costs the answer (the server refuses what does not fit).
CHARS_PER_TOKEN = 3
# A character outside ASCII is taken as a token of its own: right for CJK and emoji, high for accented letters.
TOKENS_PER_WIDE_CHAR = 1
# Role and separators that a chat template puts around each message.
TOKENS_PER_MESSAGE = 6
# The oldest message shown moves in steps: a front that moves at every turn voids the server's prefix cache every time.
FRONT_STEP = 8
# The model in a context that is recorded for a turn of a restored log, where nobody is left to say which it was.
UNKNOWN_MODEL = "unknown"


@dataclass(frozen=True, slots=True)
class ContextLimits:
    """messages: at most so many of the path's latest. reserve: the share of the window that is kept for the answer."""

    messages: int
    reserve: float


@dataclass(frozen=True, slots=True)
class Plan:
    """What the model will be shown: the system prompt, then these messages, in prompt order."""

    system: str | None
    messages: tuple[Message, ...]
    left_out: LeftOut
    budget: Budget


def estimate(chars: int, wide_chars: int) -> int:
    """Tokens that a text of so many characters may take, from its lengths alone."""
    narrow = chars - wide_chars
    return TOKENS_PER_MESSAGE + -(-narrow // CHARS_PER_TOKEN) + wide_chars * TOKENS_PER_WIDE_CHAR


def choose(session: Session, turn: Turn, window: int, limits: ContextLimits) -> Plan:
    """The context of this turn in a window of so many tokens. The turn's own message is always in it."""
    whole = session.path_to(turn.message_id)
    path = [m for m in whole if m.shown]
    reserve = _reserve(turn, window, limits)
    system = estimate(len(session.system), wide_chars(session.system)) if session.system else 0
    fitting = _fitting(path, window - reserve - system, limits.messages)
    start = _front(path, fitting)
    chosen = path[start:]
    failed = sum(m.failed for m in whole)
    counts = {
        "limit" if len(path) - fitting == limits.messages else "budget": fitting,
        "front": start - fitting,
        "failed": failed,
        "empty": len(whole) - len(path) - failed,
    }
    return Plan(
        system=session.system,
        messages=tuple(chosen),
        left_out=LeftOut(**{reason: count for reason, count in counts.items() if count}),
        budget=Budget(
            tokens=window, reserve=reserve, estimated=system + sum(estimate(m.chars, m.wide_chars) for m in chosen)
        ),
    )


def _fitting(path: list[Message], room: int, limit: int) -> int:
    """Where the longest end of the path begins that fits so many tokens and messages; the last message always does."""
    start = len(path) - 1
    used = estimate(path[start].chars, path[start].wide_chars)
    while start > 0 and len(path) - start < limit:
        used += estimate(path[start - 1].chars, path[start - 1].wide_chars)
        if used > room:
            break
        start -= 1
    return start


def _reserve(turn: Turn, window: int, limits: ContextLimits) -> int:
    asked = turn.options.max_tokens
    share = int(window * limits.reserve)
    return min(asked, share) if asked is not None else share


def _front(path: list[Message], start: int) -> int:
    """Where the context begins once `start` messages do not fit: at a step, and at a user's message."""
    if start == 0:
        return 0
    last = len(path) - 1
    step = -(-start // FRONT_STEP) * FRONT_STEP
    if step - start <= (last - start) / 2:  # of few long messages a step would leave out most of what fits
        start = step
    while start < last and path[start].role != "user":
        start += 1
    return start


def recorded_plan(session: Session, turn: Turn, context: ContextAssembled) -> Plan:
    """What a turn's recorded context was rendered from."""
    shown = tuple(session.messages[message_id] for message_id in context.message_ids)
    return Plan(turn.system, shown, context.left_out, context.budget)


def texts_of(plan: Plan, events: Mapping[int, Event]) -> dict[str, str]:
    """The plan's texts by message_id: an import's event holds many. events: by position, those that hold them."""
    imports = [event.data for event in events.values() if isinstance(event.data, SessionImported)]
    imported = {each.message_id: each.text for data in imports for each in data.messages}
    return {m.message_id: imported.get(m.message_id) or _text_of(events[m.position]) for m in plan.messages}


def _text_of(event: Event) -> str:
    if isinstance(event.data, UserMessageSubmitted | AnswerCompleted | AnswerCancelled):
        return event.data.text or ""
    raise TypeError(f"{event.type} has no text that a context takes")


def render(plan: Plan, texts: Mapping[str, str]) -> list[dict[str, str]]:
    """The {role, content} list that the model gets. texts: by message_id."""
    rendered = [{"role": "system", "content": plan.system}] if plan.system else []
    return rendered + [{"role": m.role, "content": texts[m.message_id]} for m in plan.messages]


def context_data(
    session: Session, turn: Turn, plan: Plan, model: str, digest: str | None, rendered: list[dict[str, str]]
) -> dict[str, object]:
    """The data of context_assembled: the receipt of what the model is shown, without texts that the log has."""
    options = turn.options
    data = ContextAssembled(
        purpose="answer",
        model=model,
        digest=digest,
        message_ids=[m.message_id for m in plan.messages],
        left_out=plan.left_out,
        options=options,
        seed=options.seed if options.seed is not None else seed_of(turn.turn_id),
        budget=plan.budget,
        rendered_hash=data_hash(rendered),
    ).model_dump(mode="json", exclude_none=True)
    if plan.system != session.shown_system and plan.system is not None:
        data["system"] = plan.system
    return data
