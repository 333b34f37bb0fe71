"""Beside the road, gateway/api/subjects: the subjects of contracts/subjects as an AsyncAPI document.

Owns the list of channels for people; FastStream renders it. Must never be connected: its broker only describes.
"""

from __future__ import annotations

from functools import cache

from faststream.nats import NatsBroker
from faststream.specification import AsyncAPI
from pydantic import BaseModel

from contracts import frames, parked, queries, turns
from contracts.envelope import Envelope

# (subject with its variable parts, what is said there, its shape)
_CHANNELS: tuple[tuple[str, str, type[BaseModel]], ...] = (
    (
        "chat.intake.{partition}.{user}.{session}.{type}",
        "JetStream CHAT_INTAKE: events, from gateways and workers to history.",
        Envelope,
    ),
    (
        "chat.context.{purpose}.{model}.{turn}",
        "JetStream CHAT_CONTEXT: context_assembled with its texts, from history to a worker.",
        Envelope,
    ),
    ("chat.feed.{user}.{session}", "Events from history, tokens from the worker, to gateways.", frames.Token),
    ("chat.feed.{user}", "Sessions that began, changed, went or are back, from history.", frames.EventFrame),
    ("chat.turn.{user}.{turn}", "go, stop, cancel, recorded; snapshot, asked by a gateway.", turns.Snapshot),
    ("chat.history.sessions.{user}", "Query: a page of sessions.", queries.SessionsQuery),
    ("chat.history.session.{user}", "Query: one session.", queries.SessionQuery),
    ("chat.history.messages.{user}", "Query: a page of messages.", queries.MessagesQuery),
    ("chat.history.turn.{user}", "Query: one turn; with a run, the word for its worker.", queries.TurnQuery),
    ("chat.history.events.{user}", "Query: a page of recorded events, from the log.", queries.EventsQuery),
    ("chat.history.outcome.{user}", "Query: what became of an event.", queries.OutcomeQuery),
    ("chat.operator.status", "Query: how history is, for an operator.", queries.StatusReply),
    ("chat.operator.parked_list", "Query: the parked events.", parked.ParkedListQuery),
    ("chat.operator.parked_show", "Query: one parked event, and a part of its bytes.", parked.ParkedShowQuery),
    ("chat.operator.parked_retry", "Decide a parked event again.", parked.ParkedActQuery),
    ("chat.operator.parked_discard", "Forget a parked event for good.", parked.ParkedActQuery),
    ("chat.load", "How full it is, from history, every second.", turns.Load),
    ("chat.presence.{worker}", "What a worker says of itself, every 2 s.", turns.Presence),
)


@cache
def asyncapi_document() -> str:
    """AsyncAPI 3, as JSON."""
    broker = NatsBroker("nats://127.0.0.1:8701", specification_url="nats://127.0.0.1:8701")
    for subject, description, schema in _CHANNELS:
        broker.publisher(subject, title=subject, description=description, schema=schema)
    specification = AsyncAPI(
        broker,
        title="Chatlog",
        version="1",
        description="What Chatlog's services say to each other over NATS.",
    ).to_specification()
    return str(specification.to_json())
