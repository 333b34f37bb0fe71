"""Step 8, history/log (core): the seal of a row beside the events: its values' hash, in the row itself.

Owns the recipe, and which tables have it; events have the chain. Whoever writes such a row writes the seal with it, and
verify finds by it a value that is not what was written. Must never do I/O.
"""

from __future__ import annotations

from typing import Any

from contracts.base import data_hash
from contracts.errors import ContractError

SEALED_TABLES = ("log", "cursor", "outcomes", "parked")

Value = str | int | bytes | None


def seal(table: str, *values: Value) -> str:
    """SHA-256 in hex of compact JSON: the table's name, and the row's values in the order of its columns; bytes are in
    hex. Raises ContractError for text that is not UTF-8.
    """
    return data_hash([table, *(each.hex() if isinstance(each, bytes) else each for each in values)])


def sealed(table: str, *values: Value) -> tuple[Value, ...]:
    """The whole row: its values, then the seal."""
    return (*values, seal(table, *values))


def holds(table: str, *row: Any) -> bool:
    """Whether the whole row is what was written. A text that is not UTF-8 may be passed as surrogates."""
    *values, kept = row
    try:
        return bool(seal(table, *values) == kept)
    except ContractError:
        return False
