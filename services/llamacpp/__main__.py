"""Beside the road: `python -m services.llamacpp` runs the box."""

from __future__ import annotations

import sys

from services.llamacpp.app import main

if __name__ == "__main__":
    sys.exit(main())
