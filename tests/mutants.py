"""`make mutants`: breaks each safeguard by its patch, in a copy of the work tree, and says which test caught it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
PATCHES = sorted((ROOT / "tests/faults/mutations").glob("*.patch"))
TIMEOUT_S = 300
HEADER = "Test: "


def named_in(patch: Path) -> list[str]:
    """The tests that its header expects to fail."""
    return [line.removeprefix(HEADER) for line in patch.read_text().splitlines() if line.startswith(HEADER)]


def apply(patch: Path, tree: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """tree need not be a repository."""
    command = ["patch", "--strip=1", "--batch", "--forward", f"--input={patch}", *options]
    return subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)


def run(tree: Path, tests: list[str]) -> int:
    """pytest's exit code: 0 passed, 1 failed; anything else is no verdict."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    return subprocess.run(command, cwd=tree, capture_output=True, check=False, timeout=TIMEOUT_S).returncode


def copy_to(folder: str) -> Path:
    ignored = shutil.ignore_patterns(".venv", ".git", "data", "__pycache__", ".*_cache", ".hypothesis")
    return Path(shutil.copytree(ROOT, Path(folder) / "tree", ignore=ignored))


def main() -> int:
    survivors = 0
    with tempfile.TemporaryDirectory() as folder:
        if run(copy_to(folder), sorted({test for patch in PATCHES for test in named_in(patch)})) != 0:
            sys.stdout.write("the named tests do not pass unbroken\n")
            return 1
    for patch in PATCHES:
        with tempfile.TemporaryDirectory() as folder:
            tree, began = copy_to(folder), time.monotonic()
            applied = apply(patch, tree).returncode == 0
            caught = applied and run(tree, named_in(patch)) == 1
            survivors += not caught
            verdict = named_in(patch)[0] if caught else "SURVIVED" if applied else "DOES NOT APPLY"
            sys.stdout.write(f"{patch.stem:40} {time.monotonic() - began:5.1f} s  {verdict}\n")
    sys.stdout.write(f"{len(PATCHES)} safeguards broken, {survivors} not caught\n")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
