"""Which model server the workers call: chosen once, when the stack starts, and said.

Owns the rules of CHATLOG_MODEL_SERVER and the questions that it takes to answer them. Must never fall back silently:
what was asked for and does not answer is an error.
"""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any, Literal

from services.operator.settings import StackSettings, load_all
from services.runtime.settings import SettingsError

Kind = Literal["ollama", "openai", "box", "standin"]

DEFAULT_OLLAMA_URL = "http://127.0.0.1:11434"
# The model that the box serves and that an Ollama can pull: small enough for any machine.
SMALL_MODEL = "smollm2:135m"
PROBE_TIMEOUT_S = 2.0
_MAX_ANSWER_BYTES = 4 * 1024 * 1024


class NoModelServer(Exception):
    """The model server that was asked for cannot be used. The text says which, and what to do."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The server, why it is this one, the model that a turn gets, and what the user should know of it."""

    kind: Kind
    url: str
    why: str
    model: str = ""
    notes: tuple[str, ...] = ()


def choose(settings: StackSettings) -> Choice:
    """Decide by the settings and, where they leave it open, by who answers. Raises NoModelServer."""
    wanted = settings.operator.model_server
    ollama_url, openai_url = settings.inference.ollama_url, settings.inference.openai_url
    if ollama_url and openai_url and wanted == "auto":
        raise NoModelServer(
            "CHATLOG_OLLAMA_URL and CHATLOG_OPENAI_URL are both set: let CHATLOG_MODEL_SERVER say which"
        )
    if wanted == "openai" or (wanted == "auto" and openai_url):
        return _openai(settings)
    if wanted == "ollama" or (wanted == "auto" and ollama_url):
        return _asked_ollama(settings)
    if wanted == "standin":
        made_up = "CHATLOG_MODEL_SERVER asks for the stand-in: its answers are made up"
        return Choice("standin", standin_url(settings), made_up, model=SMALL_MODEL)
    if wanted == "auto" and (models := _ollama_models(DEFAULT_OLLAMA_URL)) is not None:
        why = f"an Ollama answers at {DEFAULT_OLLAMA_URL}"
        return _ollama(DEFAULT_OLLAMA_URL, why, models, settings.history.model)
    return _box(settings, asked=wanted == "box")


def box_url(settings: StackSettings) -> str:
    return f"http://{settings.box.box_host}:{settings.box.box_port}/v1"


def standin_url(settings: StackSettings) -> str:
    return f"http://127.0.0.1:{settings.operator.standin_port}"


def _openai(settings: StackSettings) -> Choice:
    url = settings.inference.openai_url.rstrip("/")
    if not url.endswith("/v1"):
        raise NoModelServer(
            f"CHATLOG_OPENAI_URL must end in /v1, as in http://127.0.0.1:8080/v1 (is {url or 'not set'})"
        )
    key = settings.inference.openai_key()
    status, answer = _get(f"{url}/models", key)
    if status is None:
        raise NoModelServer(
            f"no answer from {url}, which CHATLOG_OPENAI_URL names; it must be there when Chatlog starts"
        )
    refused = f"{url} refuses the key (HTTP {status}): set CHATLOG_OPENAI_API_KEY"
    notes = (refused,) if status in (401, 403) else ()
    return Choice("openai", url, "CHATLOG_OPENAI_URL names it", settings.history.model or _first_model(answer), notes)


def _asked_ollama(settings: StackSettings) -> Choice:
    url = (settings.inference.ollama_url or DEFAULT_OLLAMA_URL).rstrip("/")
    asked_by = "CHATLOG_OLLAMA_URL" if settings.inference.ollama_url else "CHATLOG_MODEL_SERVER=ollama"
    models = _ollama_models(url)
    if models is None:
        raise NoModelServer(f"no Ollama answers at {url}, which {asked_by} asks for; start it with `ollama serve`")
    return _ollama(url, f"{asked_by} asks for it", models, settings.history.model)


def _ollama(url: str, why: str, models: list[str], wanted: str) -> Choice:
    """An Ollama, and the `ollama pull` that it lacks. It stays chosen without a model: sends are refused until then."""
    missing = not models or (wanted and wanted not in models and f"{wanted}:latest" not in models)
    if not missing:
        return Choice("ollama", url, why, wanted or models[0])
    return Choice("ollama", url, why, notes=(f"this Ollama lacks the model: ollama pull {wanted or SMALL_MODEL}",))


def _box(settings: StackSettings, *, asked: bool) -> Choice:
    why = "CHATLOG_MODEL_SERVER asks for it" if asked else f"no Ollama answers at {DEFAULT_OLLAMA_URL}"
    small = (
        f"The box is a small model ({SMALL_MODEL}): it is right for trying Chatlog out, wrong for work. "
        "For real answers install Ollama (ollama.com), pull a model, and start Chatlog again."
    )
    return Choice("box", box_url(settings), why, SMALL_MODEL, (small,))


def _first_model(answer: Any) -> str:
    """The first of /v1/models."""
    models = answer.get("data") if isinstance(answer, dict) else None
    return str(models[0].get("id", "")) if models else ""


def _ollama_models(url: str) -> list[str] | None:
    """The names of its models; None: nobody answers there as an Ollama does."""
    status, answer = _get(f"{url}/api/tags", "")
    if status != 200 or not isinstance(answer, dict):
        return None
    return [str(model.get("name", "")) for model in answer.get("models") or []]


def _get(url: str, key: str) -> tuple[int | None, Any]:
    """(status, JSON) of a GET; status None: no answer at all. No proxy: model servers are near."""
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"} if key else {})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=PROBE_TIMEOUT_S) as response:
            return response.status, json.loads(response.read(_MAX_ANSWER_BYTES))
    except urllib.error.HTTPError as error:
        return error.code, None
    except ValueError:
        return 200, None
    except OSError:
        return None, None


def main() -> int:
    """Print the choice as one word, for the Makefile: it installs the box's wheels only where the box is to run."""
    try:
        sys.stdout.write(choose(load_all({})).kind + "\n")
    except (SettingsError, NoModelServer) as error:
        sys.stderr.write(f"chatlog: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
