"""`chatlog keys`: make, list and revoke API keys, in the bucket that every gateway follows.

Owns the writing of the records. Must never keep, print twice or log a key: only its holder has it.
"""

from __future__ import annotations

import re
import secrets
import string
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from nats.js import JetStreamContext
from nats.js.errors import APIError, BucketNotFoundError, KeyNotFoundError, KeyWrongLastSequenceError
from nats.js.kv import KeyValue

from contracts import subjects
from contracts.base import dump, time_text
from contracts.keys import ID_CHARS, SECRET_BYTES, KeyRecord, Scope, digest_of, key_text, read_key_record

_ID_ALPHABET = string.ascii_lowercase + string.digits
_LIFETIME = re.compile(r"(\d{1,6})([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_MAX_USER_CHARS = 200


class KeysRefused(Exception):
    """What was asked of the keys cannot be done. The text is one clear line."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A key to make. lifetime: 30d, 12h, 15m, 90s; None: until it is revoked."""

    user_id: str
    name: str
    scope: Scope
    lifetime: str | None


async def create(js: JetStreamContext, wanted: Wanted) -> tuple[KeyRecord, str]:
    """The record of a new key, and the key itself, which is nowhere else. Raises KeysRefused."""
    user = wanted.user_id
    if not (1 <= len(user) <= _MAX_USER_CHARS and user.isprintable() and user == user.strip()):
        raise KeysRefused(f"a user has 1 to {_MAX_USER_CHARS} printable characters, and no space at either end")
    if len(wanted.name) > _MAX_USER_CHARS or not wanted.name.isprintable():
        raise KeysRefused(f"a name has at most {_MAX_USER_CHARS} printable characters")
    now = datetime.now(UTC)
    key_id = "".join(secrets.choice(_ID_ALPHABET) for _ in range(ID_CHARS))
    key = key_text(key_id, secrets.token_urlsafe(SECRET_BYTES))
    record = KeyRecord(
        key_id=key_id,
        user_id=user,
        name=wanted.name,
        scopes=[wanted.scope],
        digest=digest_of(key),
        created_at=time_text(now),
        expires_at=None if wanted.lifetime is None else time_text(now + _lifetime(wanted.lifetime)),
        revoked_at=None,
    )
    try:
        await (await _bucket(js)).create(key_id, dump(record))
    except APIError as error:
        raise KeysRefused(f"the bucket does not take it: {error.description}") from error
    return record, key


async def listed(js: JetStreamContext) -> list[KeyRecord]:
    """Every record, oldest first."""
    bucket = await _bucket(js)
    info = await js.stream_info(subjects.KEYS_STREAM, subjects_filter=subjects.KEYS_SUBJECTS)
    ids = [subject.rpartition(".")[2] for subject in info.state.subjects or {}]
    return sorted([(await _get(bucket, key_id))[0] for key_id in ids], key=lambda record: record.created_at)


async def revoke(js: JetStreamContext, key_id: str) -> KeyRecord:
    """The record, revoked: its gateways have closed what it opened within 2 s. Raises KeysRefused."""
    bucket = await _bucket(js)
    record, revision = await _get(bucket, key_id)
    if record.revoked_at is not None:
        return record
    revoked = record.model_copy(update={"revoked_at": time_text(datetime.now(UTC))})
    try:
        await bucket.update(key_id, dump(revoked), last=revision)
    except KeyWrongLastSequenceError as error:
        raise KeysRefused(f"key {key_id} was changed at the same moment; try again") from error
    return revoked


async def _bucket(js: JetStreamContext) -> KeyValue:
    try:
        return await js.key_value(subjects.KEYS_BUCKET)
    except BucketNotFoundError as error:
        raise KeysRefused("there is no bucket for keys; `chatlog provision` makes it") from error


async def _get(bucket: KeyValue, key_id: str) -> tuple[KeyRecord, int]:
    if not re.fullmatch(rf"[0-9a-z]{{{ID_CHARS}}}", key_id, re.ASCII):
        raise KeysRefused(f"no id of a key: it has {ID_CHARS} letters and digits, see `chatlog keys list`")
    try:
        entry = await bucket.get(key_id)
    except KeyNotFoundError as error:
        raise KeysRefused(f"there is no key {key_id}") from error
    return read_key_record(entry.value or b""), entry.revision or 0


def _lifetime(text: str) -> timedelta:
    found = _LIFETIME.fullmatch(text)
    if found is None or int(found[1]) == 0:
        raise KeysRefused("--expires takes a number and s, m, h or d: 30d")
    return timedelta(**{_UNITS[found[2]]: int(found[1])})
