"""Logs of a real process: JSON lines, and a canary text that appears in none of them, whatever goes wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

PROGRAM = """
import asyncio, json, logging
import structlog
from pydantic import BaseModel
from contracts.errors import ContractError
from services.runtime import logs

logs.configure("sample", "info")
log = structlog.get_logger("sample.module")

class Model(BaseModel):
    text: int

def fails(text):
    content = text
    Model(text=content)

log.info("accepted", event_id="e-1", text="canary", password="canary",
         nested={"a": [{"content": "canary"}], "count": 2})
log.debug("below_the_level")
try:
    fails("canary")
except Exception:
    log.exception("not_read", event_id="e-2")
try:
    try:
        json.loads("canary")
    except ValueError as error:
        raise OSError(28, "no space left") from error
except OSError as error:
    log.error("disk", exc_info=error)
logging.getLogger("library").warning("lost %s", "connection")
try:
    fails("canary")
except Exception:
    logging.getLogger("library").exception("library failed")
log.info("object", something=Model.model_construct(text=1), messages=["canary"])
"""


def _lines() -> tuple[str, list[dict[str, Any]]]:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == ""
    return done.stderr, [json.loads(line) for line in done.stderr.splitlines()]


def test_lines_are_json_with_ids_and_without_texts() -> None:
    raw, lines = _lines()
    assert "canary" not in raw
    assert [line["event"] for line in lines] == [
        "accepted", "not_read", "disk", "lost connection", "library failed", "object",
    ]  # fmt: skip
    assert all(line["service"] == "sample" and line["timestamp"].endswith("Z") for line in lines)
    accepted = lines[0]
    assert (accepted["event_id"], accepted["level"], accepted["logger"]) == ("e-1", "info", "sample.module")
    assert accepted["nested"] == {"a": [{"content": "[not logged]"}], "count": 2}
    assert accepted["text"] == accepted["password"] == "[not logged]"


def test_an_exception_says_where_and_only_safe_kinds_say_what() -> None:
    _, lines = _lines()
    [not_read] = lines[1]["exception"]
    assert (not_read["kind"], not_read["words"]) == ("ValidationError", "[not logged]")
    assert not_read["frames"][-2].endswith(" fails")
    disk, cause = lines[2]["exception"]
    assert (disk["kind"], disk["words"]) == ("OSError", "[Errno 28] no space left")
    assert (cause["kind"], cause["words"]) == ("JSONDecodeError", "[not logged]")
    assert lines[4]["exception"][0]["kind"] == "ValidationError"
