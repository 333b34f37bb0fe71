"""The patches of `make mutants` still apply, each to what it breaks, and name the tests that catch them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mutants import PATCHES, ROOT, apply, named_in


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.stem)
def test_a_mutation_applies_and_names_its_tests(patch: Path) -> None:
    applied = apply(patch, ROOT, "--dry-run")
    assert applied.returncode == 0, applied.stdout
    named = [test.split("::") for test in named_in(patch)]
    assert named
    for path, name in named:
        assert f"def {name}(" in (ROOT / path).read_text()
