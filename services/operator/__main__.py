"""`python -m services.operator` is the `chatlog` command."""

from __future__ import annotations

from services.operator.cli import main

if __name__ == "__main__":
    main()
