"""Starts the gateway: python -m services.gateway."""

from __future__ import annotations

import sys

from services.gateway.app import main
from services.gateway.settings import GatewaySettings
from services.runtime.lifecycle import run

if __name__ == "__main__":
    sys.exit(run("gateway", GatewaySettings, main))
