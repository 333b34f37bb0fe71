"""The environment that a test gives to the processes it starts."""

from __future__ import annotations

import os

# Settings of whoever runs the tests are not a test's; nor are the flags of the make that runs them one inside's.
NOT_PASSED_ON = ("CHATLOG_", "MAKE", "MFLAGS")


def plain_environment() -> dict[str, str]:
    """This process's own, without what would change a test."""
    return {name: value for name, value in os.environ.items() if not name.startswith(NOT_PASSED_ON)}
