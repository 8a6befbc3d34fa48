"""Which module may import which: the part that import-linter cannot say, and the layers once more from the text.

The contract in pyproject.toml sees packages; these tests read the source, and so tell an import at the top of a file
from one inside a function, and ``torch.distributed`` from ``torch``.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "seqattn").rglob("*.py"))

LAYERS = (
    {"__main__"},
    {"cli"},
    {"plots"},
    {"tune", "benchmark", "report", "reproduce"},
    {"hawkes", "classify", "recommend", "dynamics"},
    {"train", "nn"},
    {"data", "attention"},
    {"errors"},
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}

# What is imported -> the files that may do so.
HOMES = {
    # Python's generator is shared by the whole process: RecBole draws from it, and gets it lent.
    "random": {"recommend/shared_random.py"},
    "optuna": {f"tune/{name}.py" for name in ("desk", "draws", "records", "scoring", "search", "storage")},
    "sqlalchemy": {"tune/storage.py"},
    "click": {
        f"cli/{name}.py"
        for name in ("__init__", "attention", "console", "datasets", "reproduction", "study", "tuning")
    },
    "pandas": {"data/table.py"},
    "joblib": {"classify/motifs.py", "reproduce/pool.py"},
    "distributed": {"reproduce/pool.py"},
    "torch.distributed": {"train/distributed.py"},
    "sktime": {"classify/sktime.py", "data/archive.py"},
    "aeon": {"classify/aeon.py", "classify/peers.py"},
    "recbole": {"recommend/recbole.py", "recommend/recbole_compat.py"},
}
BRIDGES = ("seqattn.classify.sktime", "seqattn.classify.aeon", "seqattn.recommend.recbole")
# Importing these modules must not import the library.
ON_USE = {"classify/peers.py": "aeon"}
ON_REQUEST = ("matplotlib", "pandas", "sktime.datasets", "optuna.visualization", "distributed")
WITHOUT_TORCH = {"__init__.py", "errors.py", *HOMES["click"]}


class Import(NamedTuple):
    name: str
    line: int
    is_top_level: bool


def imports_of(tree: ast.Module, package: str) -> Iterator[Import]:
    """Find every imported module with its full name; imports for type checkers alone are left out."""
    inside_functions = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(function)
    }
    for_checkers = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and "TYPE_CHECKING" in ast.unparse(branch.test)
        for part in branch.body
        for node in ast.walk(part)
    }
    for node in ast.walk(tree):
        if id(node) in for_checkers:
            continue
        for name in _names(node, package):
            yield Import(name, node.lineno, id(node) not in inside_functions)


def _names(node: ast.AST, package: str) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        parent = package.split(".")[: -(node.level - 1) or None] if node.level else []
        module = ".".join([*parent, *filter(None, [node.module])])
        yield from (f"{module}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.distributed":
        yield "torch.distributed"


def read(path: Path) -> list[Import]:
    package = ".".join(path.relative_to(ROOT).parent.parts)
    return list(imports_of(ast.parse(path.read_text()), package))


def inner(path: Path) -> str:
    return path.relative_to(ROOT / "seqattn").as_posix()


def is_within(name: str, module: str) -> bool:
    return name == module or name.startswith(module + ".")


@pytest.mark.parametrize("path", SOURCES, ids=inner)
def test_imports_go_downwards_only(path):
    own = inner(path).split("/")[0].removesuffix(".py")
    if own == "__init__":
        return  # the facade points everywhere, and imports inside functions only: see the next test
    wrong = [
        f"{found.name} (line {found.line})"
        for found in read(path)
        if (other := found.name.removeprefix("seqattn.").split(".")[0]) in RANK
        and found.name.startswith("seqattn.")
        and other != own
        and RANK[other] <= RANK[own]
    ]
    assert not wrong, f"{inner(path)} imports {', '.join(wrong)}"


@pytest.mark.parametrize("path", SOURCES, ids=inner)
def test_every_module_has_a_place_in_the_layers(path):
    assert inner(path) == "__init__.py" or inner(path).split("/")[0].removesuffix(".py") in RANK


def test_the_facade_imports_nothing_of_the_package_at_once():
    found = [found for found in read(ROOT / "seqattn" / "__init__.py") if found.is_top_level]
    assert not [f for f in found if is_within(f.name, "seqattn")], found


@pytest.mark.parametrize("path", SOURCES, ids=inner)
def test_libraries_are_imported_only_where_they_are_at_home(path):
    wrong = [
        f"{found.name} (line {found.line})"
        for found in read(path)
        for library, homes in HOMES.items()
        if is_within(found.name, library) and inner(path) not in homes
    ]
    assert not wrong, f"{inner(path)} imports {', '.join(wrong)}"


@pytest.mark.parametrize("path", SOURCES, ids=inner)
def test_optional_and_slow_libraries_are_imported_inside_functions(path):
    wrong = [
        f"{found.name} (line {found.line})"
        for found in read(path)
        if found.is_top_level
        and (
            any(is_within(found.name, library) for library in ON_REQUEST)
            or any(is_within(found.name, bridge) for bridge in BRIDGES)
            or (inner(path) in ON_USE and is_within(found.name, ON_USE[inner(path)]))
            or (is_within(found.name, "torch") and inner(path) in WITHOUT_TORCH)
        )
    ]
    assert not wrong, f"{inner(path)} imports at its top {', '.join(wrong)}"


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import torch.distributed as dist", [("torch.distributed", True)]),
        ("from torch import distributed", [("torch.distributed", True)]),
        ("def f():\n    from matplotlib import pyplot", [("matplotlib.pyplot", False)]),
        ("class A:\n    import pandas", [("pandas", True)]),
        ("x = torch.distributed.is_available()", [("torch.distributed", True)]),
        ("from . import loop", [("seqattn.train.loop", True)]),
        ("from ..data import table", [("seqattn.data.table", True)]),
        ("if TYPE_CHECKING:\n    import pandas\nelse:\n    import click", [("click", True)]),
    ],
)
def test_the_reader_of_imports_sees_each_way_to_import(code, expected):
    assert [
        (found.name, found.is_top_level) for found in imports_of(ast.parse(code), "seqattn.train")
    ] == expected
