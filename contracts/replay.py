"""The swap of the views: what an operator asks of history once they are rebuilt, and what it answers.

Owns request and reply of chat.operator.views_swap. Must never name a file: history knows where rebuilt views are.
"""

from __future__ import annotations

from typing import Literal

from pydantic import ValidationError

from contracts.base import Contract, Key, parse
from contracts.errors import ContractError

SWAP_QUERY = "views_swap"


class SwapViewsQuery(Contract):
    """by: who says so, for history's log."""

    by: Key


class SwapViewsReply(Contract):
    """refused: nothing has changed, and why. file, position: what serves now."""

    status: Literal["swapped", "refused"]
    reason: str | None = None
    file: str
    position: int


def read_swap_query(raw: bytes) -> SwapViewsQuery:
    """Raises ContractError(bad_request)."""
    try:
        return SwapViewsQuery.model_validate(parse(raw), extra="ignore")
    except ValidationError as error:
        raise ContractError("bad_request", "not a SwapViewsQuery") from error
