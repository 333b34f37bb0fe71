"""Beside the road, contracts/keys: what an API key looks like, and what is kept of it.

Owns the text form of a key, which whoever holds one can check for typing errors without asking anybody, and the record
from which a gateway knows it. Must never hold a key in a record: only its hash.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, ValidationError

from contracts.base import Contract, Text, Time, UserId, parse
from contracts.errors import ContractError

# Scanners for leaked secrets find a key by its beginning.
PREFIX = "chatlog"
# 32 random bytes as base64url: far too many to guess, so that one fast hash is enough to keep it.
SECRET_BYTES = 32
ID_CHARS = 12

# chat: everything; read: what changes nothing.
Scope = Literal["chat", "read"]

_BODY = rf"{PREFIX}_([0-9a-z]{{{ID_CHARS}}})_[A-Za-z0-9_-]{{43}}"
_KEY = re.compile(rf"({_BODY})_([0-9a-f]{{8}})", re.ASCII)
# Also one with a wrong or missing checksum: it may be a true key that was mistyped.
_ANYWHERE = re.compile(_BODY, re.ASCII)

KeyId = Annotated[str, StringConstraints(pattern=rf"^[0-9a-z]{{{ID_CHARS}}}$")]


class KeyRecord(Contract):
    """What is kept of a key, under its public id. A revoked key keeps its record: its id is never given again."""

    key_id: KeyId
    user_id: UserId
    name: Annotated[Text, Field(max_length=200)]
    scopes: Annotated[list[Scope], Field(min_length=1)]
    digest: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    created_at: Time
    expires_at: Time | None
    revoked_at: Time | None

    def is_live(self, now: str) -> bool:
        """now: a time as contracts write it; such texts sort as the times do."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)

    def allows(self, scope: Scope) -> bool:
        return scope in self.scopes or "chat" in self.scopes


def key_text(key_id: str, secret: str) -> str:
    """The key as its user gets it, once. secret: SECRET_BYTES random bytes as base64url."""
    body = f"{PREFIX}_{key_id}_{secret}"
    return f"{body}_{_checksum(body)}"


def key_id_of(text: str) -> str | None:
    """The public id in a key; None where it is no key or was mistyped."""
    found = _KEY.fullmatch(text)
    return found[2] if found is not None and found[3] == _checksum(found[1]) else None


def digest_of(text: str) -> str:
    """What is kept of a key."""
    return hashlib.sha256(text.encode()).hexdigest()


def holds_key(text: str) -> bool:
    """Whether something with the look of a key is anywhere in text."""
    return _ANYWHERE.search(text) is not None


def read_key_record(raw: bytes) -> KeyRecord:
    """Raises ContractError(bad_request)."""
    try:
        return KeyRecord.model_validate(parse(raw), extra="ignore")
    except ValidationError as error:
        raise ContractError("bad_request", "not a key's record") from error


def _checksum(body: str) -> str:
    return f"{zlib.crc32(body.encode()):08x}"
