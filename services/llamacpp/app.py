"""Beside the road: the box's process: checks the machine, starts llama.cpp's server, waits for the signal to end.

Owns the process's life and its exit code. It holds nothing that is worth a drain: whoever's answer it ends here is
answered by the next attempt.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from enum import IntEnum

import structlog

from services.llamacpp.machine import CannotRunError, check_this_processor, find_model
from services.llamacpp.server import MODEL_NAME, WINDOW_TOKENS, start_server
from services.llamacpp.settings import BoxSettings, api_key
from services.runtime import logs
from services.runtime.settings import SettingsError, load, parse_flags

log = structlog.get_logger(__name__)

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Exit(IntEnum):
    """What the supervisor can tell from a code."""

    STOPPED = 0
    FAILED = 1
    BAD_SETTINGS = 2
    CANNOT_RUN = 4  # the machine lacks something: starting it again does not help


def main() -> int:
    """Run the box until SIGTERM. What is wrong is one line on stderr."""
    # Blocked here, before llama.cpp makes its threads: so the signal waits for this thread alone.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        settings = load(BoxSettings, parse_flags([BoxSettings], sys.argv[1:], "python -m services.llamacpp"))
        key = api_key(settings)
    except SettingsError as error:
        return _say(str(error), Exit.BAD_SETTINGS)
    logs.configure("llamacpp")
    try:
        check_this_processor()
        server = start_server(settings, key, find_model())
    except CannotRunError as error:
        return _say(str(error), Exit.CANNOT_RUN)
    except RuntimeError as error:
        return _say(_why_not_started(settings, error), Exit.FAILED)
    log.info(
        "box_listening",
        address=server.listening_address,
        model=MODEL_NAME,
        slots=settings.box_slots,
        window_tokens=WINDOW_TOKENS,
    )
    return _until_told_to_stop()


def _until_told_to_stop() -> int:
    number = signal.sigwait(STOP_SIGNALS)
    log.info("box_stopped", signal=signal.Signals(number).name)
    sys.stderr.flush()
    # Freeing the server would wait for its running answers: 30 s for one (measured). The sockets close with us.
    os._exit(Exit.STOPPED)


def _why_not_started(settings: BoxSettings, error: RuntimeError) -> str:
    """llama.cpp says only that it did not start; most often its port is taken."""
    address = (settings.box_host, settings.box_port)
    try:
        with socket.create_server(address):
            return f"llama.cpp's server did not start: {error}"
    except OSError as taken:
        return f"CHATLOG_BOX_PORT: cannot listen on {settings.box_host}:{settings.box_port}: {taken.strerror}"


def _say(line: str, code: Exit) -> int:
    sys.stderr.write(f"llamacpp: {line}\n")
    return code
