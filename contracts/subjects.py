"""Subjects and streams: every NATS address of Chatlog is built and parsed here, and nowhere else.

Owns the addresses and their encoding of users and models. Every subject that a user's request reaches contains the
user, so that one user cannot name another's. Must never hold a client or a connection.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Literal

from contracts.errors import ContractError
from contracts.partitions import partition_of

INTAKE_STREAM = "CHAT_INTAKE"
INTAKE_SUBJECTS = "chat.intake.>"
CONTEXT_STREAM = "CHAT_CONTEXT"
CONTEXT_SUBJECTS = "chat.context.>"

# A key-value bucket is a stream of this name with these subjects: a record of each API key under its public id.
KEYS_BUCKET = "CHAT_KEYS"
KEYS_STREAM = f"KV_{KEYS_BUCKET}"
KEYS_SUBJECTS = f"$KV.{KEYS_BUCKET}.>"

# History says that it is (back) here: gateways ask again for what they may have missed, workers say who they are.
HELLO = "chat.history.hello"
# How full the intake and the queues are, from history, every second.
LOAD = "chat.load"
PRESENCE_ALL = "chat.presence.*"
HISTORY_QUERIES = "chat.history.*.*"
OPERATOR_QUERIES = "chat.operator.*"
# One history answers each query; the group makes a second one in a rolling restart harmless.
HISTORY_GROUP = "history"

# Headers. CHAT_REPLY: where the outcome goes. The other three repeat the envelope, to park what cannot be read.
CHAT_REPLY = "Chat-Reply"
CHAT_EVENT = "Chat-Event"
CHAT_USER = "Chat-User"
CHAT_TURN = "Chat-Turn"

Purpose = Literal["answer"]

_PLAIN = re.compile(r"[A-Za-z0-9_-]{1,64}")


def token_of(name: str) -> str:
    """A user or a model as one subject token: u-<name> where that is a legal token, else h-<hash>."""
    if _PLAIN.fullmatch(name):
        return f"u-{name}"
    return "h-" + hashlib.sha256(name.encode()).hexdigest()[:32]


def intake(user_id: str, session_id: str, event_type: str) -> str:
    return f"chat.intake.{partition_of(user_id)}.{token_of(user_id)}.{session_id}.{event_type}"


def context(purpose: Purpose, model: str, turn_id: str) -> str:
    return f"chat.context.{purpose}.{token_of(model)}.{turn_id}"


def contexts_of(purpose: Purpose, model: str) -> str:
    """All queued contexts of one model: the filter of its durable consumer."""
    return f"chat.context.{purpose}.{token_of(model)}.*"


def context_consumer(purpose: Purpose, model: str) -> str:
    """The name of the durable consumer that serves one purpose of one model."""
    return f"{purpose}-{token_of(model)}"


def session_feed(user_id: str, session_id: str) -> str:
    return f"chat.feed.{token_of(user_id)}.{session_id}"


def user_feed(user_id: str) -> str:
    return f"chat.feed.{token_of(user_id)}"


def turn(user_id: str, turn_id: str) -> str:
    return f"chat.turn.{token_of(user_id)}.{turn_id}"


def history_query(query: str, user_id: str) -> str:
    return f"chat.history.{query}.{token_of(user_id)}"


def operator_query(query: str) -> str:
    return f"chat.operator.{query}"


def key_record(key_id: str) -> str:
    return f"$KV.{KEYS_BUCKET}.{key_id}"


def presence(worker_id: str) -> str:
    return f"chat.presence.{worker_id}"


@dataclass(frozen=True, slots=True)
class IntakeAddress:
    """What an intake subject says of its event."""

    partition: int
    user_token: str
    session_id: str
    type: str


def parse_intake(subject: str) -> IntakeAddress:
    """Raises ContractError(event_parked) for a subject that no writer of ours builds."""
    parts = subject.split(".")
    if len(parts) != 6 or parts[:2] != ["chat", "intake"] or not (parts[2].isascii() and parts[2].isdigit()):
        raise ContractError("event_parked", "not an intake subject")
    return IntakeAddress(partition=int(parts[2]), user_token=parts[3], session_id=parts[4], type=parts[5])


def parse_query(subject: str) -> tuple[str, str]:
    """(query, user token) of a chat.history subject."""
    _, _, query, user_token = subject.split(".")
    return query, user_token
