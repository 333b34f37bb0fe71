"""Starts history: python -m services.history."""

from __future__ import annotations

import sys

from services.history.app import main
from services.history.settings import HistorySettings
from services.runtime.lifecycle import run

if __name__ == "__main__":
    sys.exit(run("history", HistorySettings, main))
