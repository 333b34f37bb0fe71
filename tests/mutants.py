"""`make mutants`: breaks each safeguard by its patch, in a copy of the work tree, and says which test caught it.

A patch names the test that must fail (`Test: path::name`); that it passes unbroken is seen first. Never touches the
work tree, and leaves no process behind.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PATCHES = sorted((ROOT / "tests/faults/mutations").glob("*.patch"))
HEADER = "Test: "
# For one mutant: its test takes seconds, on a slow and busy machine a minute. All of them, unbroken, get a share each.
TIMEOUT_S = 300
AT_ONCE = 2
PASSED, FAILED, TIMED_OUT = 0, 1, -1  # pytest's exit codes; all others are no verdict


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one mutant."""

    name: str
    seconds: float
    caught: bool
    said: str


def noticed_by(patch: Path) -> str:
    """The test that its first line expects to fail."""
    return patch.read_text().partition("\n")[0].removeprefix(HEADER)


def broken_by(patch: Path, tree: Path) -> dict[Path, str]:
    """The files that it changes, as it makes them; by what stands there, not by line numbers, so that it survives edits
    elsewhere. Raises LookupError where that is not there, or not once.
    """
    _, *sections = re.split(r"^diff --git .*\n", patch.read_text(), flags=re.MULTILINE)
    made: dict[Path, str] = {}
    for section in sections:
        head, *hunks = re.split(r"^@@ .*\n", section, flags=re.MULTILINE)
        path = tree / head.partition("+++ b/")[2].strip()
        made[path] = path.read_text()
        for hunk in hunks:
            lines = hunk.splitlines(keepends=True)
            before, after = ("".join(line[1:] for line in lines if line[0] in kept) for kept in (" -", " +"))
            if made[path].count(before) != 1:
                raise LookupError(f"{patch.name}: {made[path].count(before)} times in {path.name}: {before}")
            made[path] = made[path].replace(before, after)
    return made


def run(tree: Path, tests: list[str], timeout_s: float, *options: str) -> int:
    """pytest's exit code. What it has started ends with it."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *options, *tests]
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    with subprocess.Popen(
        command, cwd=tree, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as pytest:
        try:
            return pytest.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return TIMED_OUT
        finally:
            with suppress(ProcessLookupError):
                os.killpg(pytest.pid, signal.SIGKILL)


def copy_of(tree: Path, folder: str) -> Path:
    """With the compiled bytecode that it has: each mutant compiles only what it changes."""
    ignored = shutil.ignore_patterns(".venv", ".git", "data", ".*_cache", ".hypothesis")
    return Path(shutil.copytree(tree, Path(folder) / "tree", ignore=ignored))


def judge(patch: Path, tree: Path) -> Verdict:
    """Break a copy of tree, and run the test that is to notice."""
    began, test = time.monotonic(), noticed_by(patch)
    with tempfile.TemporaryDirectory() as folder:
        broken = copy_of(tree, folder)
        for path, text in broken_by(patch, broken).items():
            path.write_text(text)
        code = run(broken, [test], TIMEOUT_S)
    said = {FAILED: test, PASSED: "SURVIVED", TIMED_OUT: "TIMED OUT"}.get(code, "DOES NOT RUN")
    return Verdict(patch.stem, time.monotonic() - began, code == FAILED, said)


def main(only: list[str]) -> int:
    """only: the mutants' names; none: all."""
    patches = [patch for patch in PATCHES if not only or patch.stem in only]
    caught = 0
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(AT_ONCE) as pool:
        whole = copy_of(ROOT, folder)
        tests = sorted({noticed_by(patch) for patch in patches})
        if run(whole, tests, TIMEOUT_S * len(tests), f"--numprocesses={AT_ONCE}", "--dist=loadfile") != PASSED:
            sys.stdout.write("the named tests do not pass unbroken\n")
            return 1
        for verdict in pool.map(lambda patch: judge(patch, whole), patches):
            caught += verdict.caught
            sys.stdout.write(f"{verdict.name:40} {verdict.seconds:5.1f} s  {verdict.said}\n")
            sys.stdout.flush()
    sys.stdout.write(f"{len(patches)} safeguards broken, {len(patches) - caught} not caught\n")
    return 0 if caught == len(patches) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
