"""Writes the JSON Schemas of all contracts: python -m contracts.generate [folder].

Owns contracts/schemas/, which is generated: a test fails when it is stale. Readers in other languages build on it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from contracts import events, frames, imports, keys, parked, queries, turns, upcasters
from contracts.envelope import Envelope

FOLDER = Path(__file__).parent / "schemas"

FRAMES: tuple[type[BaseModel], ...] = (
    frames.EventFrame,
    frames.Token,
    frames.AnswerSoFar,
    frames.Accepted,
    frames.Refused,
    frames.ErrorFrame,
    frames.Attached,
    frames.Resync,
    frames.TurnQueued,
    frames.Loading,
    frames.Pong,
    frames.Authenticate,
    frames.Attach,
    frames.Detach,
    frames.Send,
    frames.Cancel,
    frames.Ping,
)
TURNS: tuple[type[BaseModel], ...] = (
    turns.Go,
    turns.Stop,
    turns.Cancel,
    turns.Recorded,
    turns.Snapshot,
    turns.Presence,
    turns.Load,
    turns.OutcomeMessage,
)


def schemas() -> dict[str, str]:
    """File name -> JSON Schema, for each event, frame, query and message between services."""
    shapes: dict[str, type[BaseModel]] = {"envelope": Envelope, "key_record": keys.KeyRecord}
    shapes |= {f"events/{name}.{version}": shape for name, (version, shape) in events.REGISTRY.items()}
    shapes |= {f"events/{name}.{version}": former.shape for (name, version), former in upcasters.FORMER.items()}
    shapes |= {f"frames/{shape.model_fields['type'].annotation.__args__[0]}": shape for shape in FRAMES}  # type: ignore[union-attr]
    shapes |= {f"turns/{_snake(shape)}": shape for shape in TURNS}
    for name, (request, reply) in queries.QUERIES.items():
        shapes[f"queries/{name}.request"] = request
        if reply is not None:
            shapes[f"queries/{name}.reply"] = reply
    for name, (asked, answered) in (parked.PARKED_QUERIES | imports.IMPORT_QUERIES).items():
        shapes |= {f"operator/{name}.request": asked, f"operator/{name}.reply": answered}
    return {f"{name}.json": _schema(shape) for name, shape in sorted(shapes.items())}


def write(folder: Path) -> None:
    """Replace what is there: a shape that is gone leaves no file behind."""
    wanted = schemas()
    for old in folder.rglob("*.json"):
        if str(old.relative_to(folder)) not in wanted:
            old.unlink()
    for name, text in wanted.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def _schema(shape: type[BaseModel]) -> str:
    schema: dict[str, Any] = {"$schema": "https://json-schema.org/draft/2020-12/schema", **shape.model_json_schema()}
    return json.dumps(schema, indent=2, sort_keys=True) + "\n"


def _snake(shape: type[BaseModel]) -> str:
    name = shape.__name__
    return "".join(f"_{c.lower()}" if c.isupper() and i else c.lower() for i, c in enumerate(name))


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
