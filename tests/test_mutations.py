"""The patches of `make mutants` still broken_by, each to what it breaks, and name the test that catches it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.mutants import PATCHES, ROOT, broken_by, noticed_by


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.stem)
def test_a_mutation_applies_and_names_its_test(patch: Path) -> None:
    for changed, text in broken_by(patch, ROOT).items():
        assert text != changed.read_text()
        if changed.suffix == ".py":
            ast.parse(text)
    path, name = noticed_by(patch).split("::")
    assert f"def {name}(" in (ROOT / path).read_text()


def test_the_guarantees_name_tests_and_mutations_that_are_there() -> None:
    """docs/guarantees.md: each row's test exists, and each mutation beside it is one that this very test catches."""
    catches = {patch.stem: noticed_by(patch) for patch in PATCHES}
    rows = re.findall(r"^\|.*\| `(tests/\S+?)::(\w+)` \|(.*)\|$", (ROOT / "docs/guarantees.md").read_text(), re.M)
    assert len(rows) > 40
    for path, name, broken in rows:
        assert f"def {name}(" in (ROOT / path).read_text()
        for mutation in re.findall(r"`(.*?)`", broken):
            assert catches[mutation] == f"{path}::{name}"
