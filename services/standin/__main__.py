"""Beside the road: the door of `python -m services.standin`. It only starts the app."""

from __future__ import annotations

from services.standin.app import main

if __name__ == "__main__":
    main()
