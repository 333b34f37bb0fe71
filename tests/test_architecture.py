"""The rules of the house, as tests: who may import whom, how long a thing may get, and that the docs say what is so."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from contracts import events, generate, subjects, upcasters
from contracts.errors import CODES
from services.gateway.api.routes import ROUTES, WEBSOCKET_ROUTES
from services.operator import reference

ROOT = Path(__file__).parents[1]
CODE = [path for folder in ("contracts", "services") for path in sorted((ROOT / folder).rglob("*.py"))]
TESTS = [path for path in sorted((ROOT / "tests").rglob("*.py")) if "recordings" not in path.parts]
MAX_FUNCTION_LINES = 60
MAX_FILE_LINES = 400
MAX_PARAMETERS = 6
RUNTIME_FILES = {"__init__", "bus", "health", "lifecycle", "listener", "logs", "settings", "streams", "version"}
BANNED_NAMES = {"utils", "helpers", "manager", "common", "misc", "data", "info"}

# Decisions without I/O, clock or random: they can be read, tested and replayed by themselves.
CORE = {
    "services/gateway/intake.py",
    "services/gateway/relay.py",
    "services/history/arrivals.py",
    "services/history/context.py",
    "services/history/deadlines.py",
    "services/history/decisions.py",
    "services/history/effects.py",
    "services/history/liveness.py",
    "services/history/places.py",
    "services/history/receipt.py",
    "services/history/scheduler.py",
    "services/history/session.py",
    "services/history/tools/findings.py",
    "services/history/tools/trail.py",
    "services/history/views/batch.py",
    "services/history/succession.py",
    "services/history/tools/exported_file.py",
    "services/history/tools/lines.py",
    "services/history/tools/markdown.py",
    "services/history/views/fold.py",
    "services/history/views/pages.py",
    "services/history/views/past.py",
    "services/history/views/rows.py",
    "services/inference/run.py",
    "services/inference/tokens.py",
}
PURE_STDLIB = {
    "__future__",
    "base64",
    "bisect",
    "collections",
    "copy",
    "dataclasses",
    "enum",
    "functools",
    "hashlib",
    "heapq",
    "itertools",
    "json",
    "operator",
    "re",
    "typing",
    "unicodedata",
    "uuid",
    "zlib",
}


@dataclass(frozen=True)
class Source:
    """A Python file of ours, parsed."""

    path: str
    text: str
    tree: ast.Module

    @property
    def service(self) -> str | None:
        parts = Path(self.path).parts
        return parts[1] if parts[0] == "services" and len(parts) > 2 else None

    @property
    def docstring(self) -> str:
        return ast.get_docstring(self.tree) or ""

    def imports(self) -> Iterator[str]:
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                yield from (f"{node.module}.{alias.name}" for alias in node.names)

    def functions(self) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
        for node in ast.walk(self.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield node


def source(path: Path) -> Source:
    text = path.read_text()
    return Source(str(path.relative_to(ROOT)), text, ast.parse(text))


SOURCES = [source(path) for path in CODE]
BENCH = [source(path) for path in sorted((ROOT / "bench").rglob("*.py"))]
EVERY_SOURCE = SOURCES + [source(path) for path in TESTS] + BENCH


def test_imports_follow_the_layout() -> None:
    assert not [
        f"{module.path} imports {name}" for module in SOURCES for name in module.imports() if not _may(module, name)
    ]


def _may(module: Source, name: str) -> bool:
    first, _, rest = name.partition(".")
    if first in ("tests", "bench"):
        return False
    if first != "services":
        return True
    imported = rest.partition(".")[0]
    if module.service is None:
        return False  # contracts import nothing of ours
    if imported in (module.service, "runtime"):
        return True
    # The operator starts the services, so it reads their settings, runs history's tools on the log's files, and a
    # recorded context through a worker's own adapters; nobody imports the operator.
    return module.service == "operator" and (
        rest.split(".")[1] in ("settings", "app") or rest.startswith(("history.tools.", "inference.rerun."))
    )


def test_a_measurement_needs_no_test() -> None:
    """bench runs where only the runtime's lock is installed."""
    allowed = {
        "bench",
        "contracts",
        "services",
        "nats",
        "httpx",
        "uvicorn",
        "fastapi",
        "pydantic",
        "starlette",
        "uvloop",
    }
    foreign = {name.partition(".")[0] for module in BENCH for name in module.imports()} - sys.stdlib_module_names
    foreign.remove("eventsourcing")  # runs in an environment of its own
    assert foreign <= allowed


@pytest.mark.parametrize("path", sorted(CORE))
def test_the_core_is_pure(path: str) -> None:
    module = source(ROOT / path)
    foreign = [name for name in module.imports() if not _is_pure(name)]
    assert not foreign, "no I/O, clock or random in the core, and core imports core only"
    waits = [node.lineno for node in ast.walk(module.tree) if isinstance(node, ast.AsyncFunctionDef | ast.Await)]
    assert not waits, "nothing waits in the core"


def _is_pure(name: str) -> bool:
    first = name.partition(".")[0]
    if first == "services":
        return "/".join(name.split(".")[:-1]) + ".py" in CORE
    return first in PURE_STDLIB or first in ("contracts", "pydantic", "pydantic_core")


def test_contracts_need_stdlib_and_pydantic_only() -> None:
    allowed = PURE_STDLIB | {"contracts", "pydantic", "typing_extensions", "types", "datetime", "sys", "pathlib"}
    mine = [module for module in SOURCES if module.path.startswith("contracts")]
    assert {name.partition(".")[0] for module in mine for name in module.imports()} <= allowed
    assert not [m.path for m in mine if any(isinstance(node, ast.AsyncFunctionDef) for node in ast.walk(m.tree))]


def test_functions_are_short() -> None:
    long = [
        f"{module.path} {function.name}: {lines} lines"
        for module in EVERY_SOURCE
        for function in module.functions()
        if (lines := (function.end_lineno or 0) - function.lineno + 1) > MAX_FUNCTION_LINES
    ]
    assert not long


def test_files_are_short() -> None:
    assert not [m.path for m in EVERY_SOURCE if len(m.text.splitlines()) > MAX_FILE_LINES]


def test_functions_take_few_parameters() -> None:
    many = [f"{m.path} {f.name}" for m in SOURCES for f in m.functions() if _parameters(f) > MAX_PARAMETERS]
    assert not many


def _parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    arguments = function.args
    names = [a.arg for a in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]]
    return len([name for name in names if name not in ("self", "cls")])


def test_each_module_opens_with_its_place() -> None:
    """Where it stands, what it owns, what it must never do."""
    assert not [module.path for module in EVERY_SOURCE if module.text.strip() and not module.docstring]


def test_names_say_something() -> None:
    assert not [module.path for module in SOURCES if Path(module.path).stem in BANNED_NAMES]
    defined = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [(m.path, node) for m in SOURCES for node in ast.walk(m.tree) if isinstance(node, defined)]
    assert not [f"{path} {node.name}" for path, node in nodes if node.name.lower().strip("_") in BANNED_NAMES]


def test_the_runtime_stays_small() -> None:
    assert {path.stem for path in (ROOT / "services/runtime").glob("*.py")} <= RUNTIME_FILES


def test_nothing_is_left_for_later() -> None:
    later = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b|NotImplementedError")
    assert not [m.path for m in EVERY_SOURCE if later.search(m.text) and m.path != "tests/test_architecture.py"]


def test_no_test_sleeps_to_wait() -> None:
    """tests/polling.py waits, with a reason and a bound. A sleep that sets a rhythm says so: # pace: why."""
    sleeps = [
        f"{module.path}:{call.lineno}"
        for module in EVERY_SOURCE[len(SOURCES) :]
        for call in ast.walk(module.tree)
        if isinstance(call, ast.Call) and ast.unparse(call.func) in ("time.sleep", "asyncio.sleep")
        if ast.unparse(call.args[0]) != "0" and "# pace:" not in module.text.splitlines()[call.lineno - 1]
    ]
    assert not [sleep for sleep in sleeps if not sleep.startswith("tests/polling.py")]


# The docs.


def read(name: str) -> str:
    return (ROOT / name).read_text()


def table(text: str, heading: str) -> list[list[str]]:
    """The rows of the first table under a heading, without its head."""
    _, found, rest = text.partition(f"\n{heading}\n")
    assert found, f"no heading {heading!r}"
    lines: list[str] = []
    for line in rest.splitlines():
        if line.startswith("|"):
            lines.append(line)
        elif lines:
            break
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:]]


def ticked(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


STEP = re.compile(r"^Steps? ([0-9, and to]+), ([a-z_/]+)")


def steps_of(docstring: str) -> set[int]:
    """'Step 5', 'Steps 5 and 10', 'Steps 6 to 8' at a docstring's beginning."""
    found = STEP.match(docstring)
    if not found:
        return set()
    steps: set[int] = set()
    for part in re.split(r", | and ", found[1]):
        first, _, last = part.partition(" to ")
        steps |= set(range(int(first), int(last or first) + 1))
    return steps


def test_the_road_in_the_docs_is_the_road_in_the_code() -> None:
    in_code = {(step, module.path) for module in SOURCES for step in steps_of(module.docstring)}
    in_docs = {
        (int(row[0]), path)
        for row in table(read("docs/one-message.md"), "## Where each step lives")
        for path in ticked(row[2])
    }
    assert in_docs == in_code
    assert {step for step, _ in in_code} == set(range(2, 15)), "step 1 is the client's"


def test_a_step_s_docstring_names_its_own_place() -> None:
    for module in SOURCES:
        found = STEP.match(module.docstring)
        if found:
            place = module.path.removeprefix("services/").removesuffix(".py")
            assert place.startswith(found[2].rstrip("/")), f"{module.path} says that it is {found[2]}"


def test_the_docs_list_every_event() -> None:
    rows = table(read("docs/one-message.md"), "## Events")
    in_docs = {ticked(row[0])[0]: [int(version) for version in row[1].split(", ")] for row in rows}
    assert in_docs == {name: upcasters.versions_of(name) for name in events.REGISTRY}
    writers = {ticked(row[0])[0]: set(row[2].split(", ")) for row in rows}
    for name in events.REGISTRY:
        wanted = {"gateway"} if name in events.GATEWAY_WRITES else set()
        wanted |= {"inference"} if name in events.INFERENCE_WRITES else set()
        wanted |= {"history"} if name in events.HISTORY_WRITES else set()
        assert writers[name] == wanted, name


def test_the_docs_list_every_subject() -> None:
    in_docs = {ticked(row[0])[0] for row in table(read("docs/one-message.md"), "## Subjects")}
    session, turn = "<session>", "<turn>"
    assert in_docs == {
        "chat.intake.<partition>.<user>.<session>.<type>",
        "chat.context.<purpose>.<model>.<turn>",
        subjects.session_feed("x", session).replace("u-x", "<user>"),
        subjects.user_feed("x").replace("u-x", "<user>"),
        subjects.turn("x", turn).replace("u-x", "<user>"),
        subjects.history_query("<query>", "x").replace("u-x", "<user>"),
        subjects.operator_query("<query>"),
        subjects.HELLO,
        subjects.LOAD,
        subjects.presence("<worker>"),
        subjects.key_record("<key>"),
    }


def test_the_docs_list_every_frame() -> None:
    in_docs = {ticked(row[0])[0] for row in table(read("docs/clients.md"), "## Frames")}
    assert in_docs == {Path(name).stem for name in generate.schemas() if name.startswith("frames/")}


def test_the_docs_list_every_code() -> None:
    in_docs = {(ticked(row[0])[0], int(row[1])) for row in table(read("docs/clients.md"), "## Codes")}
    assert in_docs == {(entry.code, entry.http_status) for entry in CODES}


def test_the_docs_list_every_route() -> None:
    in_docs = {ticked(row[0])[0] for row in table(read("docs/clients.md"), "## Routes")}
    assert in_docs == {f"{route.method} {route.path}" for route in ROUTES} | {
        f"WebSocket {path}" for path, _ in WEBSOCKET_ROUTES
    }


def test_the_settings_page_is_fresh() -> None:
    """`make contracts` writes it."""
    assert reference.PAGE.read_text() == reference.settings_page()
