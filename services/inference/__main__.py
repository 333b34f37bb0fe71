"""`python -m services.inference`: one worker process. Its settings: `chatlog settings`."""

from __future__ import annotations

import sys

from services.inference.app import main
from services.inference.settings import InferenceSettings
from services.runtime.lifecycle import run

if __name__ == "__main__":
    sys.exit(run("inference", InferenceSettings, main))
