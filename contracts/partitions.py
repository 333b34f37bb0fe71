"""Partitions: which share of the intake a user's events are in, so that a user's sessions always have one owner.

Owns one number and one function. Must never change either: the intake's subjects are built from them.
"""

from __future__ import annotations

import zlib

PARTITIONS = 16


def partition_of(user_id: str) -> int:
    """0 to 15: CRC-32 of the user's id in UTF-8, modulo the number of partitions."""
    return zlib.crc32(user_id.encode()) % PARTITIONS
