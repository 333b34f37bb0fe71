"""Off the road, history/log: stored bodies taken apart without parsing them whole: for who reads a million of them.

Owns where each part is in a body as our writers make it (compact JSON, keys sorted), and a quick form of each type's
newest data, made from the contracts' own models. Must never take what read_event refuses: what is not just as our
writers make it is None here, and read_event is to be asked.
"""

from __future__ import annotations

import re
from functools import lru_cache

from pydantic import TypeAdapter, ValidationError

from contracts import events
from contracts.base import UserId, compact
from contracts.errors import ContractError
from contracts.quick import PLAIN_TIME, Fields, Form, data_form

# event_id, user_id, session_id, turn_id, type, schema_version: what the log keeps of an envelope beside its body. Text
# is the file's own bytes here: nothing is decoded that is only compared.
Columns = tuple[bytes, bytes, bytes, bytes | None, bytes, int]
# causation_id, and the bytes of data: those that data_hash is over.
Parts = tuple[bytes | None, bytes]

_CAUSE = b'{"causation_id":"'
_DATA = b'","data":'
_DATA_ALONE = b'{"data":'
_ID_CHARS = 36
_TIME_CHARS = 24
_CAUSE_END = len(_CAUSE) + _ID_CHARS
_BETWEEN = b',"event_id":"%b","occurred_at":"'
_BETWEEN_CHARS = len(_BETWEEN) - len(b"%b") + _ID_CHARS
_is_time = re.compile(PLAIN_TIME.encode()).fullmatch
_is_uuid = re.compile(rb"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}").fullmatch
_TURNLESS = frozenset(each.encode() for each in events.REGISTRY if not events.needs_turn(each))
# So many ids are spoken of side by side; one that was forgotten is only looked at again.
_REMEMBERED = 4096


def take_apart(body: bytes, columns: Columns) -> Parts | None:
    """The parts of a body that says what these columns say, and is just as our writers make it."""
    event_id, user_id, session_id, turn_id, event_type, schema_version = columns
    turn = b"" if turn_id is None else b',"turn_id":"%b"' % turn_id
    end = b'","schema_version":%d,"session_id":"%b"%b,"type":"%b","user_id":%b}' % (
        schema_version,
        session_id,
        turn,
        event_type,
        _quoted(user_id),
    )
    time_end = len(body) - len(end)
    time_at = time_end - _TIME_CHARS
    data_end = time_at - _BETWEEN_CHARS
    if not (
        body.endswith(end)
        and body[data_end:time_at] == _BETWEEN % event_id
        and _is_time(body, time_at, time_end)
        and _is_uuid(event_id)
        and _is_id(session_id)
        and (event_type in _TURNLESS if turn_id is None else _is_id(turn_id))
    ):
        return None
    if body.startswith(_DATA_ALONE):
        return None, body[len(_DATA_ALONE) : data_end]
    cause = body[len(_CAUSE) : _CAUSE_END]
    if body.startswith(_CAUSE) and body.startswith(_DATA, _CAUSE_END) and _is_id(cause):
        return cause, body[_CAUSE_END + len(_DATA) : data_end]
    return None


def read_data(event_type: bytes, schema_version: int, data: bytes) -> Fields | None:
    """The fields of data in the newest shape of its type; None where it is not just that."""
    form = _FORMS.get((event_type, schema_version))
    if form is None:
        return None
    try:
        return form(data)
    except ValidationError:
        return None


@lru_cache(_REMEMBERED)
def _is_id(raw: bytes) -> bool:
    return _is_uuid(raw) is not None


@lru_cache(_REMEMBERED)
def _quoted(user_id: bytes) -> bytes:
    """The user as JSON has it. Empty, which no body says, where it is none that an envelope takes."""
    try:
        return compact(_USER.validate_python(user_id.decode()))
    except (UnicodeDecodeError, ValidationError, ContractError):
        return b""


_USER = TypeAdapter[str](UserId)

_FORMS: dict[tuple[bytes, int], Form] = {
    (event_type.encode(), schema_version): data_form(shape)
    for event_type, (schema_version, shape) in events.REGISTRY.items()
}
