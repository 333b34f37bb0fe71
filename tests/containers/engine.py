"""A container engine for tests: is one here, and may a test build images on it.

Owns the two conditions under which these tests do not run, each said as the reason of a skip.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess

import pytest

ASK_TIMEOUT_S = 10
# testcontainers' own reaper is one more image from a registry. What a test starts, its own block ends.
os.environ.setdefault("TESTCONTAINERS_RYUK_DISABLED", "true")
# Set by `make containers`. Building and starting whole stacks takes minutes: `make test` goes without.
WANTED = "TEST_CONTAINERS"


@functools.cache
def why_no_engine() -> str:
    """Why containers cannot run here; empty: they can."""
    if shutil.which("docker") is None:
        return "not run: there is no `docker` command here"
    for question in (["docker", "info"], ["docker", "compose", "version"]):
        asked = subprocess.run(question, capture_output=True, text=True, timeout=ASK_TIMEOUT_S, check=False)
        if asked.returncode != 0:
            return f"not run: `{' '.join(question)}` says {(asked.stderr or asked.stdout).strip()[-200:]}"
    return ""


def why_no_stacks() -> str:
    """Why no images are built and no stacks are started here; empty: they are."""
    return why_no_engine() or ("" if os.environ.get(WANTED) else "not run: `make containers` runs it")


needs_engine = pytest.mark.skipif(bool(why_no_engine()), reason=why_no_engine() or "an engine answers")
needs_stacks = pytest.mark.skipif(bool(why_no_stacks()), reason=why_no_stacks() or "an engine answers")
