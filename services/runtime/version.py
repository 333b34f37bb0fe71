"""The version of Chatlog: what every service says of itself. A test holds it equal to pyproject.toml."""

from __future__ import annotations

VERSION = "0.1.0"
