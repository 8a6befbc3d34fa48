"""The names users rely on: what the README lists is what the packages export, no more and no less."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "seqattn").rglob("*.py")
)


def documented() -> dict[str, list[str]]:
    """Read the table under "Public names" of the README: module -> names."""
    section = re.search(r"^#+ Public names\n(.*?)(?=^#+ )", (ROOT / "README.md").read_text(), re.M | re.S)
    assert section, "README.md has no section 'Public names'."
    rows = re.findall(r"^\| `(seqattn[\w.]*)` \| (.+) \|$", section[1], re.M)
    return {module: re.findall(r"`(\w+)", names) for module, names in rows}


@pytest.mark.parametrize("module", ["seqattn", "seqattn.attention"])
def test_the_documented_names_are_the_exported_ones(module):
    assert sorted(documented()[module]) == sorted(importlib.import_module(module).__all__)


@pytest.mark.parametrize("module", MODULES)
def test_every_exported_name_exists_and_is_listed_once(module):
    found = importlib.import_module(module)
    names = list(getattr(found, "__all__", []))
    assert len(names) == len(set(names))
    assert [name for name in names if not hasattr(found, name)] == []
