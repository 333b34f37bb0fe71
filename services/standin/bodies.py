"""Beside the road (core): what report and faults read of any wire's body, before anything is checked.

It owns a reading that never fails: a body that the wire will refuse is reported all the same. It must never refuse.
"""

from __future__ import annotations

import json
from typing import Any


def tolerant_fields(body: bytes) -> dict[str, Any]:
    """The body's fields for report and faults; none where it is no JSON object."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def texts_of(fields: dict[str, Any]) -> str:
    """All texts of the messages, in which a fault's marker is looked for."""
    messages = fields.get("messages")
    if not isinstance(messages, list):
        return ""
    return "\n".join(str(message.get("content", "")) for message in messages if isinstance(message, dict))
