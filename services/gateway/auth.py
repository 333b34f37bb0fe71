"""Step 2, gateway/auth: who asks, and may they.

Owns the one function that finds a key in what a request carries, whatever the carrier, and the one that says whose it
is; every door calls these and no others. In open mode everybody who reaches the loopback address is the user `local`.
Must never say why a key is not valid: missing, guessed, mistyped, expired and revoked are one answer.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import unquote

import structlog
from starlette.types import Scope as Carrier

from contracts.base import time_text
from contracts.keys import KeyRecord, Scope, digest_of, holds_key, key_id_of
from services.gateway.intake import Refused

log = structlog.get_logger(__name__)

LOCAL_USER = "local"
# A browser cannot set a header on a WebSocket, but it can offer subprotocols.
SUBPROTOCOL_PREFIX = "chat.key."
_BEARER = "bearer "
# Compared with where there is no such key, so that an unknown id takes as long as a wrong secret.
_NO_DIGEST = "0" * 64


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: a user, and the public id of the key that says so; None in open mode."""

    user_id: str
    key_id: str | None = None


LOCAL = Caller(LOCAL_USER)


class Auth:
    """find: the record of a public id, as the keys' bucket has it now; None in open mode, which has no keys."""

    def __init__(self, find: Callable[[str], KeyRecord | None] | None, now: Callable[[], str] | None = None) -> None:
        self._find = find
        self._now = now or (lambda: time_text(datetime.now(UTC)))

    @property
    def is_open(self) -> bool:
        return self._find is None

    def caller_of(self, carrier: Carrier) -> Caller | None:
        """Who sent this request or handshake; None where it carries no key at all. Raises Refused(unauthorized)."""
        if self._find is None:
            return LOCAL
        keys = _keys_in(carrier)
        if not keys:
            return None
        if len(keys) > 1:
            raise Refused("unauthorized")
        return self.caller_with(keys[0])

    def caller_with(self, key: str) -> Caller:
        """Who holds this key. Raises Refused(unauthorized)."""
        if self._find is None:
            return LOCAL
        key_id = key_id_of(key)
        record = self._find(key_id) if key_id is not None else None
        same = hmac.compare_digest(digest_of(key), record.digest if record is not None else _NO_DIGEST)
        if record is None or not same or not record.is_live(self._now()):
            if record is not None:
                log.info("key_refused", key_id=record.key_id, guessed=not same)
            raise Refused("unauthorized")
        return Caller(record.user_id, record.key_id)

    def check(self, caller: Caller, needed: Scope) -> None:
        """Whether the caller may still do this. Raises Refused(unauthorized) or Refused(forbidden)."""
        if caller.key_id is None or self._find is None:
            return
        record = self._find(caller.key_id)
        if record is None or not record.is_live(self._now()):
            raise Refused("unauthorized")
        if not record.allows(needed):
            raise Refused("forbidden")

    def is_live(self, caller: Caller) -> bool:
        """Whether the caller's key is still valid."""
        try:
            self.check(caller, "read")
        except Refused as refusal:
            return refusal.code != "unauthorized"
        return True


def _keys_in(carrier: Carrier) -> list[str]:
    """Every key that a request or a handshake carries; the one place where carriers are read.

    Raises Refused(unauthorized) for one in the address: it is in the logs of all proxies on its way by now.
    """
    address = (carrier.get("raw_path") or b"") + b"?" + carrier["query_string"]
    if holds_key(unquote(address.decode("latin-1"))):
        raise Refused("unauthorized")
    # Anything in the header is a key that did not check, so that another scheme is refused and not passed over.
    headers = [value.decode("latin-1") for name, value in carrier["headers"] if name == b"authorization"]
    offered: list[str] = carrier.get("subprotocols", [])
    return [
        *(value[len(_BEARER) :].strip() if value.lower().startswith(_BEARER) else value for value in headers),
        *(each.removeprefix(SUBPROTOCOL_PREFIX) for each in offered if each.startswith(SUBPROTOCOL_PREFIX)),
    ]
