"""Ids that a retry must meet again: derived from what makes the thing what it is (UUIDv5 over one namespace).

Owns the recipes, guarded by golden values. Must never make a random or time-based id: those are passed in.
"""

from __future__ import annotations

import hashlib
import unicodedata
import uuid

from contracts.base import compact

# Chosen once for Chatlog; another value would make every id another one.
NAMESPACE = uuid.UUID("6f1d0d3c-9a53-5d1b-8f0e-2c7b8a6e4d10")


def _derived(*parts: str) -> str:
    """As uuid.uuid5 has it (RFC 9562, 5.5), in a third of the time: a rebuild asks for one of every turn."""
    digest = hashlib.sha1(NAMESPACE.bytes + compact(list(parts)), usedforsecurity=False).hexdigest()
    variant = "89ab"[int(digest[16], 16) & 3]
    return f"{digest[:8]}-{digest[8:12]}-5{digest[13:16]}-{variant}{digest[17:20]}-{digest[20:32]}"


def event_id_of_key(user_id: str, session_id: str, event_type: str, key: str) -> str:
    """The event_id of a request that came with an idempotency key (scoped by user, session and type)."""
    return _derived("event", user_id, session_id, event_type, key)


def message_id_of(event_id: str) -> str:
    """The user message that a user_message_submitted carries."""
    return _derived("message", event_id)


def turn_id_of(event_id: str) -> str:
    """The turn that a user_message_submitted opens."""
    return _derived("turn", event_id)


def answer_id_of(turn_id: str) -> str:
    """The message that a turn's answer becomes."""
    return _derived("answer", turn_id)


def context_event_id_of(turn_id: str) -> str:
    """The event_id of a turn's context_assembled: the same when a restored log assembles it again."""
    return _derived("context", turn_id)


def session_id_of_name(user_id: str, name: str) -> str:
    """The session of a user's own name. Names are compared in Unicode's NFC."""
    return _derived("session", user_id, unicodedata.normalize("NFC", name))


def session_id_of_key(user_id: str, key: str) -> str:
    """The session that a create without a name, with an idempotency key, makes."""
    return _derived("session_key", user_id, key)


def import_event_id_of(user_id: str, session_id: str, version: int) -> str:
    """The event at this version of a session, where history writes it for an import: other users' ids stay apart."""
    return _derived("import", user_id, session_id, str(version))


def imported_id_of(source: str, name: str) -> str:
    """What a session or message becomes whose name elsewhere is not a UUID."""
    return _derived("imported", source, name)


def seed_of(turn_id: str) -> int:
    """The seed of a turn that named none: the first 31 bits of its turn_id, so that each attempt asks for the same."""
    return uuid.UUID(turn_id).int >> (128 - 31)
