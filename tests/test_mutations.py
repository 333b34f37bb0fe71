"""The patches of `make mutants` still apply, each to what it breaks, and name the test that catches it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mutants import PATCHES, ROOT, apply, noticed_by


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.stem)
def test_a_mutation_applies_and_names_its_test(patch: Path) -> None:
    applied = apply(patch, ROOT, "--dry-run")
    assert applied.returncode == 0, applied.stdout
    path, name = noticed_by(patch).split("::")
    assert f"def {name}(" in (ROOT / path).read_text()
